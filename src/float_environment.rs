//! The processor's floating-point mode.
//!
//! Engines run with flush-to-zero, and libraries leave other rounding modes behind; the bits of a step must
//! not depend on it.

/// Keeps the thread in the default mode (round to nearest, subnormals kept, no traps) while it lives, then
/// restores what was set before.
#[must_use]
pub(crate) struct DefaultEnvironment {
    #[cfg_attr(
        not(any(target_arch = "x86_64", target_arch = "aarch64")),
        allow(dead_code)
    )]
    saved: u64,
    /// The mode belongs to the thread.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl DefaultEnvironment {
    /// Enters the default mode.
    pub(crate) fn enter() -> Self {
        let saved = control_register();
        if saved != DEFAULT {
            set_control_register(DEFAULT);
        }
        Self {
            saved,
            _not_send: std::marker::PhantomData,
        }
    }
}

impl Drop for DefaultEnvironment {
    fn drop(&mut self) {
        // Always, so that the exceptions that the step raised do not show either.
        set_control_register(self.saved);
    }
}

/// MXCSR with all exceptions masked and none raised.
#[cfg(target_arch = "x86_64")]
const DEFAULT: u64 = 0x1F80;
/// FPCR.
#[cfg(not(target_arch = "x86_64"))]
const DEFAULT: u64 = 0;

#[cfg(target_arch = "x86_64")]
fn control_register() -> u64 {
    let mut value = 0u32;
    // SAFETY: stores MXCSR into a local of the right size; SSE2 is part of x86-64.
    unsafe {
        std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut value, options(nostack, preserves_flags));
    }
    u64::from(value)
}

#[cfg(target_arch = "x86_64")]
fn set_control_register(value: u64) {
    let value = value as u32;
    // SAFETY: loads MXCSR with the default or with a value that `stmxcsr` gave, so no reserved bit is set.
    // The float arithmetic that depends on it stands in functions that are never inlined, so it cannot move
    // past this.
    unsafe {
        std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const value, options(nostack, preserves_flags));
    }
}

#[cfg(target_arch = "aarch64")]
fn control_register() -> u64 {
    let value: u64;
    // SAFETY: reads FPCR, which every aarch64 user program may.
    unsafe {
        std::arch::asm!("mrs {}, fpcr", out(reg) value, options(nomem, nostack, preserves_flags));
    }
    value
}

#[cfg(target_arch = "aarch64")]
fn set_control_register(value: u64) {
    // SAFETY: writes FPCR with zero or with a value that was read from it.
    unsafe {
        std::arch::asm!("msr fpcr, {}", in(reg) value, options(nomem, nostack, preserves_flags));
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn control_register() -> u64 {
    DEFAULT
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn set_control_register(_: u64) {}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn the_mode_is_the_default_inside_and_the_callers_outside() {
        const FLUSH_TO_ZERO_AND_ROUND_UP: u64 = 0x1F80 | 0x8040 | 0x4000;
        let before = control_register();
        set_control_register(FLUSH_TO_ZERO_AND_ROUND_UP);
        let inside = {
            let _environment = DefaultEnvironment::enter();
            control_register()
        };
        let after = control_register();
        set_control_register(before);
        assert_eq!(inside, DEFAULT);
        assert_eq!(after, FLUSH_TO_ZERO_AND_ROUND_UP);
    }
}
