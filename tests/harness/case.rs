//! Runs steps through the library's Rust API and through the rule, and compares every bit.

use std::ffi::c_void;
use std::io::Cursor;
use std::rc::Rc;

use half::bf16;
use mofo::rule::norm;
use mofo::rule::random::hash_name;
use mofo::rule::scalars::{Hyper, gradient_factor};
use mofo::rule::step::{Outcome, Setup, StateMut, step};
use mofo::{
    Device, Dtype, Optimizer, Options, StateDtype, StepArgs, StepReport, TensorBinding, TensorSpec,
};

use super::case_on_cuda::OnDevice;
use super::data::{Param, Tensor, bits};
use super::device::DeviceBuffer;
use super::places::Place;

/// The moments of a tensor as the rule keeps them.
enum State {
    F32(Vec<f32>),
    BF16(Vec<bf16>),
}

impl State {
    fn zero(dtype: StateDtype, numel: usize) -> Self {
        match dtype {
            StateDtype::F32 => Self::F32(vec![0.0; numel]),
            StateDtype::BF16 => Self::BF16(vec![bf16::ZERO; numel]),
        }
    }

    fn as_mut(&mut self) -> StateMut<'_> {
        match self {
            Self::F32(values) => StateMut::F32(values),
            Self::BF16(values) => StateMut::BF16(values),
        }
    }

    /// The bits here and at `pointer` agree, NaN payloads aside.
    fn equals(&self, pointer: *const std::ffi::c_void) -> bool {
        match self {
            Self::F32(values) => {
                // SAFETY: the library's moments have as many elements as the tensor, of this type.
                let theirs =
                    unsafe { std::slice::from_raw_parts(pointer.cast::<f32>(), values.len()) };
                values.iter().zip(theirs).all(|(&a, &b)| bits(a) == bits(b))
            }
            Self::BF16(values) => {
                // SAFETY: as above.
                let theirs =
                    unsafe { std::slice::from_raw_parts(pointer.cast::<bf16>(), values.len()) };
                values
                    .iter()
                    .zip(theirs)
                    .all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan())
            }
        }
    }
}

/// Called around a step.
pub type Hook = Option<Rc<dyn Fn()>>;

/// Some steps of an optimizer.
#[derive(Clone, Default)]
pub struct Case<'a> {
    pub options: Options,
    pub tensors: Vec<Tensor>,
    pub steps: usize,
    pub args: StepArgs<'a>,
    /// If there are any, those of each step in turn, in place of `args`.
    pub schedule: Vec<StepArgs<'a>>,
    /// Which tensors each call of a step lists; empty: one call with all of them.
    pub subsets: Vec<Vec<usize>>,
    pub before_step: Hook,
    pub after_step: Hook,
    /// If there are any, every step but the first is taken by a new optimizer, in these places in turn, which has
    /// loaded what the one before it saved.
    pub resume_in: Vec<Place>,
}

impl Case<'_> {
    /// Runs the case in each of these places.
    pub fn check_in(&self, places: &[Place]) {
        for place in places {
            let mut case = self.clone();
            place.enter_into(&mut case.options);
            case.check();
        }
    }

    /// Runs the case through the library and the rule; panics at the first difference. What the library reported of
    /// each call.
    pub fn check(mut self) -> Vec<StepReport> {
        let mut expected: Vec<Reference> = self
            .tensors
            .iter()
            .map(|tensor| Reference::new(tensor, &self.options))
            .collect();
        let (mut optimizer, mut on_device) = self.create(self.options.seed);
        if self.subsets.is_empty() {
            self.subsets.push((0..self.tensors.len()).collect());
        }
        let mut reports = Vec::new();
        for step in 0..self.steps {
            if step > 0 && !self.resume_in.is_empty() {
                (optimizer, on_device) = self.resume(optimizer, step);
            }
            for subset in self.subsets.clone() {
                let device = on_device.as_mut();
                reports.push(self.one_call(&mut optimizer, device, &mut expected, step, &subset));
            }
            for (index, (tensor, expected)) in self.tensors.iter().zip(&expected).enumerate() {
                self.compare(&optimizer, index, tensor, expected, step);
            }
        }
        reports
    }

    /// An optimizer with the tensors of the case.
    fn create(&mut self, seed: u64) -> (Optimizer, Option<OnDevice>) {
        let options = Options {
            seed,
            ..self.options.clone()
        };
        let mut optimizer = Optimizer::new(options).unwrap();
        for tensor in &self.tensors {
            let spec = TensorSpec {
                num_blocks: tensor.num_blocks as u64,
                param_dtype: tensor.param.dtype(),
                grad_dtype: tensor.grads[0].dtype(),
                update_fraction: tensor.update_fraction,
                weight_decay: tensor.weight_decay,
                learning_rate_scale: tensor.learning_rate_scale,
                ..TensorSpec::new(&tensor.name, tensor.numel() as u64)
            };
            optimizer.add_tensor(&spec).unwrap();
        }
        let on_device =
            (self.options.device != Device::Cpu).then(|| OnDevice::new(&mut self.tensors));
        (optimizer, on_device)
    }

    /// Another optimizer, elsewhere, with what this one knows.
    fn resume(&mut self, optimizer: Optimizer, step: usize) -> (Optimizer, Option<OnDevice>) {
        let mut checkpoint = Cursor::new(Vec::new());
        let bytes = optimizer.save_size().unwrap();
        assert_eq!(optimizer.save_to(&mut checkpoint).unwrap(), bytes);
        assert_eq!(checkpoint.get_ref().len() as u64, bytes);
        drop(optimizer);
        self.options.device = Device::Cpu;
        self.options.cpu_tier = None;
        self.resume_in[step % self.resume_in.len()].enter_into(&mut self.options);
        // The seed is of what is loaded.
        let (mut optimizer, on_device) = self.create(!self.options.seed);
        checkpoint.set_position(0);
        optimizer.load_from(&mut checkpoint).unwrap();
        (optimizer, on_device)
    }

    fn one_call(
        &mut self,
        optimizer: &mut Optimizer,
        device: Option<&mut OnDevice>,
        expected: &mut [Reference],
        step: usize,
        subset: &[usize],
    ) -> StepReport {
        if let Some(&args) = self.schedule.iter().cycle().nth(step) {
            self.args = args;
        }
        let factor = self.gradient_factor(step, subset);
        let (mut selected, mut nonfinite) = (0, 0);
        for &index in subset {
            let tensor = &self.tensors[index];
            let outcome = expected[index].step(&self.options, &self.args, tensor, step, factor);
            selected += outcome.selected;
            nonfinite += outcome.nonfinite;
        }
        let report = match device {
            Some(device) => device.step(optimizer, &self.args, &mut self.tensors, step, subset),
            None => self.step_on_cpu(optimizer, step, subset),
        };
        assert!(!report.skipped);
        assert_eq!(report.tensors, subset.len() as u64);
        assert_eq!(
            report.entries_selected, selected,
            "entries selected in step {step}"
        );
        assert_eq!(
            report.entries_nonfinite, nonfinite,
            "entries not finite in step {step}"
        );
        report
    }

    fn step_on_cpu(
        &mut self,
        optimizer: &mut Optimizer,
        step: usize,
        subset: &[usize],
    ) -> StepReport {
        let mut bindings = Vec::new();
        for (index, tensor) in self.tensors.iter_mut().enumerate() {
            if subset.contains(&index) {
                let grad = &tensor.grads[step % tensor.grads.len()];
                bindings.push((
                    index,
                    TensorBinding::new(index as u64, tensor.param.as_mut(), grad.as_ref()),
                ));
            }
        }
        bindings.sort_by_key(|(index, _)| subset.iter().position(|listed| listed == index));
        let mut bindings: Vec<_> = bindings.into_iter().map(|(_, binding)| binding).collect();
        if let Some(hook) = &self.before_step {
            hook();
        }
        let report = optimizer.step(&self.args, &mut bindings);
        if let Some(hook) = &self.after_step {
            hook();
        }
        report.unwrap()
    }

    /// The rule's s: the norm over the subset's tensors in ascending order, and clipping.
    fn gradient_factor(&self, step: usize, subset: &[usize]) -> f32 {
        let mut sums = Vec::new();
        for (index, tensor) in self.tensors.iter().enumerate() {
            if subset.contains(&index) {
                let grad = tensor.grads[step % tensor.grads.len()].widened();
                let mut chunks: Vec<f64> = grad
                    .chunks(norm::CHUNK)
                    .map(|chunk| norm::chunk_sum_of_squares(chunk.iter().copied()))
                    .collect();
                sums.push(norm::fold(&mut chunks));
            }
        }
        let computed = norm::norm(norm::fold(&mut sums), self.args.grad_scale);
        let norm = self.args.grad_norm.unwrap_or(computed);
        let clip = norm::clip(norm, self.options.max_grad_norm);
        gradient_factor(self.args.grad_scale, clip).unwrap()
    }

    fn compare(
        &self,
        optimizer: &Optimizer,
        index: usize,
        tensor: &Tensor,
        expected: &Reference,
        step: usize,
    ) {
        let state = optimizer.tensor_state(index as u64).unwrap();
        let what = format!(
            "{} ({} entries) after step {step} on {:?}, tier {:?}",
            tensor.name,
            tensor.numel(),
            self.options.device,
            optimizer.cpu_tier()
        );
        let numel = tensor.numel();
        let state_bytes = numel * self.options.state_dtype.size();
        // On a device, copies of what is there.
        let fetch = |pointer: *const c_void, bytes: usize| match self.options.device {
            Device::Cpu => (pointer, None),
            Device::Cuda { .. } => {
                let copy = DeviceBuffer::borrowed(pointer as u64, bytes).download();
                (copy.as_ptr().cast(), Some(copy))
            }
        };
        let (exp_avg, _copy) = fetch(state.exp_avg, state_bytes);
        let (exp_avg_sq, _copy_sq) = fetch(state.exp_avg_sq, state_bytes);
        let has_master = !state.master.is_null();
        let (master_copy, _copy_master) = if has_master {
            fetch(state.master.cast(), 4 * numel)
        } else {
            (std::ptr::null(), None)
        };
        let (thresholds, _copy_thresholds) =
            fetch(state.thresholds_start.cast(), 4 * tensor.num_blocks);
        // SAFETY: one threshold a block.
        let thresholds: Vec<u32> =
            unsafe { std::slice::from_raw_parts(thresholds.cast::<u32>(), tensor.num_blocks) }
                .to_vec();
        assert!(
            thresholds == expected.thresholds,
            "thresholds of {what}: {:?} {:?} {:?}",
            self.options.filter,
            thresholds,
            expected.thresholds
        );
        assert!(expected.exp_avg.equals(exp_avg), "exp_avg of {what}");
        assert!(
            expected.exp_avg_sq.equals(exp_avg_sq),
            "exp_avg_sq of {what}"
        );
        assert!(
            expected.param.bits() == tensor.param.bits(),
            "param of {what}"
        );
        assert_eq!(state.master.is_null(), expected.master.is_none());
        if let Some(master) = &expected.master {
            let expected = State::F32(master.clone());
            assert!(expected.equals(master_copy), "master of {what}");
        }
        assert_eq!(state.step_count, expected.t);
    }
}

/// A tensor as the rule sees it.
struct Reference {
    param: Param,
    exp_avg: State,
    exp_avg_sq: State,
    master: Option<Vec<f32>>,
    thresholds: Vec<u32>,
    t: u64,
}

impl Reference {
    fn new(tensor: &Tensor, options: &Options) -> Self {
        let numel = tensor.numel();
        let has_master = options.master_weights && tensor.param.dtype() != Dtype::F32;
        Self {
            param: tensor.param.clone(),
            exp_avg: State::zero(options.state_dtype, numel),
            exp_avg_sq: State::zero(options.state_dtype, numel),
            master: has_master.then(|| vec![0.0; numel]),
            thresholds: vec![0; tensor.num_blocks],
            t: 0,
        }
    }

    fn step(
        &mut self,
        options: &Options,
        args: &StepArgs<'_>,
        tensor: &Tensor,
        step_number: usize,
        factor: f32,
    ) -> Outcome {
        self.t += 1;
        let setup = Setup {
            hyper: Hyper {
                learning_rate: args.learning_rate.unwrap_or(options.learning_rate),
                learning_rate_scale: tensor.learning_rate_scale,
                beta1: args.beta1.unwrap_or(options.beta1),
                beta2: args.beta2.unwrap_or(options.beta2),
                epsilon: args.epsilon.unwrap_or(options.epsilon),
                weight_decay: own(tensor.weight_decay, args.weight_decay, options.weight_decay),
            },
            update_fraction: own(
                tensor.update_fraction,
                args.update_fraction,
                options.update_fraction,
            ),
            num_blocks: tensor.num_blocks,
            filter: options.filter,
            weight_decay_scope: options.weight_decay_scope,
            rounding: options.rounding,
            seed: options.seed,
            name_hash: hash_name(&tensor.name),
            t: self.t,
            gradient_factor: factor,
        };
        let outcome = step(
            &setup,
            self.param.as_mut(),
            tensor.grads[step_number % tensor.grads.len()].as_ref(),
            self.exp_avg.as_mut(),
            self.exp_avg_sq.as_mut(),
            self.master.as_deref_mut(),
        )
        .unwrap();
        self.thresholds.clone_from(&outcome.thresholds);
        outcome
    }
}

/// The value of the tensor, else of the step, else of the optimizer.
fn own(tensor: Option<f64>, args: Option<f64>, options: f64) -> f64 {
    tensor.or(args).unwrap_or(options)
}
