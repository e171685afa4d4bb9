//! Steps of a case on a CUDA device.

use std::ffi::c_void;
use std::mem::size_of;

use mofo::ffi::mofo_step_report;
use mofo::{DeviceArgs, Optimizer, StepArgs, StepReport};

use super::data::Tensor;
use super::device::DeviceBuffer;

/// The device's copies of the tensors of a case.
pub struct OnDevice {
    params: Vec<DeviceBuffer>,
    grads: Vec<DeviceBuffer>,
    report: DeviceBuffer,
}

impl OnDevice {
    pub fn new(tensors: &mut [Tensor]) -> Self {
        let params: Vec<DeviceBuffer> = tensors
            .iter_mut()
            .map(|tensor| {
                let bytes = tensor.param.bytes();
                let buffer = DeviceBuffer::new(bytes.len());
                buffer.upload(bytes);
                buffer
            })
            .collect();
        let grads = tensors
            .iter()
            .map(|tensor| DeviceBuffer::new(tensor.grads[0].bytes().len()))
            .collect();
        Self {
            params,
            grads,
            report: DeviceBuffer::new(size_of::<mofo_step_report>()),
        }
    }

    /// Steps the tensors of the subset, and brings their parameters back.
    pub fn step(
        &mut self,
        optimizer: &mut Optimizer,
        args: &StepArgs<'_>,
        tensors: &mut [Tensor],
        step: usize,
        subset: &[usize],
    ) -> StepReport {
        for &index in subset {
            let tensor = &tensors[index];
            let grad = &self.grads[index];
            grad.upload(tensor.grads[step % tensor.grads.len()].bytes());
            let param = self.params[index].start as *mut c_void;
            // SAFETY: both buffers are as large as the tensor, and live until the case is over.
            unsafe { optimizer.bind_tensor(index as u64, param, grad.start as *const c_void) }
                .unwrap();
        }
        let listed: Vec<u64> = subset.iter().map(|&index| index as u64).collect();
        let args = StepArgs {
            tensors: (subset.len() < tensors.len()).then_some(&listed[..]),
            device: DeviceArgs {
                report: self.report.start as *mut c_void,
                report_size: self.report.bytes as u64,
                ..args.device
            },
            ..*args
        };
        // SAFETY: as above; nothing else is on the device.
        let launched = unsafe { optimizer.step_bound(&args) }.unwrap();
        for &index in subset {
            self.params[index].download_into(tensors[index].param.bytes());
        }
        let report = self.report.download();
        // SAFETY: the device has written a report there, of plain numbers.
        let report = unsafe { report.as_ptr().cast::<mofo_step_report>().read() };
        assert_eq!(report.entries, launched.entries);
        assert_eq!(report.tensors, launched.tensors);
        assert_eq!(report.status, report.skipped);
        StepReport {
            grad_norm: (report.grad_norm != mofo::ffi::MOFO_INHERIT).then_some(report.grad_norm),
            entries: report.entries,
            entries_selected: report.entries_selected,
            skipped: report.skipped == 1,
            blocks_estimated: report.blocks_estimated,
            estimates_failed: report.estimates_failed,
            tensors: report.tensors,
            entries_nonfinite: report.entries_nonfinite,
        }
    }
}
