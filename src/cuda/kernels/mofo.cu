// All kernels: the one file that is compiled. See docs/cuda.md.
#include "control.cu"
#include "norm.cu"
#include "sample.cu"
#include "pass.cu"
#include "settle.cu"
#include "whole.cu"

// The kernels' names.
#define MOFO_KERNELS(X) \
    X(mofo_bind)             \
    X(mofo_begin)            \
    X(mofo_norm)             \
    X(mofo_prepare)          \
    X(mofo_sample)           \
    X(mofo_pass)             \
    X(mofo_whole)            \
    X(mofo_plan)             \
    X(mofo_select)           \
    X(mofo_settle)           \
    X(mofo_finish)
