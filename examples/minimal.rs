//! The smallest engine in Rust: two tensors, their gradients, and MoFO steps.

use mofo::{Optimizer, Options, StepArgs, TensorBinding, TensorSpec};

fn main() -> mofo::Result<()> {
    let mut weight = vec![0.0f32; 1000];
    let mut weight_grad = weight.clone();
    let mut bias = vec![0.0f32; 10];
    let mut bias_grad = bias.clone();

    let mut optimizer = Optimizer::new(Options {
        learning_rate: 0.01,
        update_fraction: 0.05, // of each tensor, the 5 % of largest momentum move
        ..Options::default()
    })?;
    let weight_index = optimizer.add_tensor(&TensorSpec::new("weight", 1000))?;
    let bias_index = optimizer.add_tensor(&TensorSpec {
        update_fraction: Some(1.0), // biases all move
        ..TensorSpec::new("bias", 10)
    })?;

    for _ in 0..100 {
        // Backward: here of (sum of (weight - i / 1000)² + sum of (bias - 1)²) / 2.
        for (i, (grad, value)) in weight_grad.iter_mut().zip(&weight).enumerate() {
            *grad = value - i as f32 / 1000.0;
        }
        for (grad, value) in bias_grad.iter_mut().zip(&bias) {
            *grad = value - 1.0;
        }
        // The optimizer borrows the slices for the step and keeps the moments.
        optimizer.step(
            &StepArgs::default(),
            &mut [
                TensorBinding::new(weight_index, &mut weight, &weight_grad),
                TensorBinding::new(bias_index, &mut bias, &bias_grad),
            ],
        )?;
    }

    println!(
        "bias[0] = {:.3}, weight[0] = {:.3}, weight[999] = {:.3}",
        bias[0], weight[0], weight[999]
    );
    Ok(())
}
