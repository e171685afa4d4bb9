// How the kernels see a tensor in a step.
#pragma once

#include "rule.cuh"

// Tells the compiler that an address is one of global memory, which takes shorter instructions.
template <class T> __device__ __forceinline__ T *global(T *address) {
#ifdef __CUDA_ARCH__
    __builtin_assume(__isGlobal(address));
#endif
    return address;
}

// Through its records, whatever its types are.
class Records {
  public:
    __device__ Records(const Tensor &tensor, const Work &work) : tensor_(tensor), work_(work) {}

    __device__ u32 param_dtype() const { return tensor_.param_dtype; }
    __device__ u32 grad_dtype() const { return tensor_.grad_dtype; }
    __device__ u32 state_dtype() const { return tensor_.state_dtype; }
    __device__ void *param() const { return tensor_.param; }
    __device__ const void *grad() const { return tensor_.grad; }
    __device__ void *exp_avg() const { return tensor_.exp_avg; }
    __device__ void *exp_avg_sq() const { return tensor_.exp_avg_sq; }
    // Null if there is none.
    __device__ float *master() const { return tensor_.master; }
    __device__ const Scalars &scalars() const { return work_.scalars; }
    __device__ const Keys &keys() const { return work_.keys; }
    __device__ u64 random() const { return work_.random; }
    __device__ bool starts_moments() const { return work_.starts_moments; }
    __device__ bool starts_master() const { return work_.starts_master; }
    __device__ bool aligned() const { return work_.aligned; }
    __device__ const Work &work() const { return work_; }

  private:
    const Tensor &tensor_;
    const Work &work_;
};

// Through copies, where a loop goes over many entries: its types are known when the kernels are compiled, and no store
// makes the compiler load the records again.
template <u32 PARAM, u32 GRAD, u32 STATE, bool MASTER> class Copies {
  public:
    __device__ Copies(const Tensor &tensor, const Work &work)
        : param_(global(tensor.param)), grad_(global(tensor.grad)), exp_avg_(global(tensor.exp_avg)),
          exp_avg_sq_(global(tensor.exp_avg_sq)), master_(MASTER ? global(tensor.master) : nullptr),
          scalars_(work.scalars), keys_(work.keys), random_(work.random), starts_moments_(work.starts_moments),
          starts_master_(work.starts_master), aligned_(work.aligned) {}

    __device__ static constexpr u32 param_dtype() { return PARAM; }
    __device__ static constexpr u32 grad_dtype() { return GRAD; }
    __device__ static constexpr u32 state_dtype() { return STATE; }
    __device__ void *param() const { return param_; }
    __device__ const void *grad() const { return grad_; }
    __device__ void *exp_avg() const { return exp_avg_; }
    __device__ void *exp_avg_sq() const { return exp_avg_sq_; }
    __device__ float *master() const { return MASTER ? master_ : nullptr; }
    __device__ const Scalars &scalars() const { return scalars_; }
    __device__ const Keys &keys() const { return keys_; }
    __device__ u64 random() const { return random_; }
    __device__ bool starts_moments() const { return starts_moments_; }
    __device__ bool starts_master() const { return MASTER && starts_master_; }
    __device__ bool aligned() const { return aligned_; }

  private:
    void *param_;
    const void *grad_;
    void *exp_avg_, *exp_avg_sq_;
    float *master_;
    Scalars scalars_;
    Keys keys_;
    u64 random_;
    bool starts_moments_, starts_master_, aligned_;
};

// Calls `use` with the view that suits a tensor: the types that most are trained with have loops of their own.
template <class Use> __device__ __forceinline__ void with_view(const Tensor &tensor, const Work &work, Use use) {
    bool is_bf16 = tensor.param_dtype == BF16 && tensor.grad_dtype == BF16;
    if (tensor.param_dtype == F32 && tensor.grad_dtype == F32 && tensor.state_dtype == F32) {
        use(Copies<F32, F32, F32, false>(tensor, work));
    } else if (is_bf16 && tensor.state_dtype == BF16 && !tensor.master) {
        use(Copies<BF16, BF16, BF16, false>(tensor, work));
    } else if (is_bf16 && tensor.state_dtype == F32 && tensor.master) {
        use(Copies<BF16, BF16, F32, true>(tensor, work));
    } else {
        use(Records(tensor, work));
    }
}
