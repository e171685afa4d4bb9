//! An engine in the middle of its training: what the fragments of the guides find declared.

use mofo::{Optimizer, Options, StepArgs, TensorBinding, TensorSpec};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut weight = vec![1.0f32; 6144];
    let grad = vec![0.5f32; 6144];
    let mut optimizer = Optimizer::new(Options::default())?;
    let index = optimizer.add_tensor(&TensorSpec::new("weight", 6144))?;
    optimizer.step(&StepArgs::default(), &mut [TensorBinding::new(index, &mut weight, &grad)])?;
    {
// the block
    }
    Ok(())
}
