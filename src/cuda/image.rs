//! The kernels as `kernels/compile.py` has compiled them, and which of them suit a device.

use std::ops::Deref;

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};

use crate::error::{Result, fail};
use crate::memory::try_with_capacity;

/// All kernels, compiled for one architecture; compressed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Image {
    name: &'static str,
    /// The compute capability that it was compiled for.
    capability: (usize, usize),
    deflated: &'static [u8],
    /// Of the image itself.
    size: usize,
}

impl Image {
    /// Looks into a gzip file, when the library is compiled.
    const fn new(name: &'static str, capability: (usize, usize), gzip: &'static [u8]) -> Self {
        let (header, rest) = gzip.split_first_chunk::<10>().unwrap();
        assert!(
            matches!(header, [0x1F, 0x8B, 8, 0, ..]),
            "deflated, and nothing optional in the header"
        );
        let (rest, size) = rest.split_last_chunk::<4>().unwrap();
        let (deflated, _checksum) = rest.split_last_chunk::<4>().unwrap();
        Self {
            name,
            capability,
            deflated,
            size: u32::from_le_bytes(*size) as usize,
        }
    }

    /// For messages.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// What `cuModuleLoadData` takes: a cubin, or a PTX that ends in a NUL.
    pub(super) fn bytes(&self) -> Result<Bytes> {
        let mut bytes = Bytes::zeroed(self.size)?;
        let (status, _, written) = decompress(
            &mut DecompressorOxide::new(),
            self.deflated,
            bytes.as_mut_slice(),
            0,
            inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
        );
        if status != TINFLStatus::Done || written != self.size {
            fail!(
                Internal,
                "{} cannot be decompressed: {status:?} after {written} of {} bytes",
                self.name,
                self.size
            );
        }
        Ok(bytes)
    }
}

/// Bytes that are aligned as the parts of an ELF file ask for.
#[derive(Debug)]
pub(super) struct Bytes {
    words: Vec<u64>,
    len: usize,
}

impl Bytes {
    fn zeroed(len: usize) -> Result<Self> {
        let count = len.div_ceil(size_of::<u64>());
        let mut words = try_with_capacity(count, "the CUDA kernels")?;
        words.resize(count, 0);
        Ok(Self { words, len })
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        let start = self.words.as_mut_ptr().cast();
        // SAFETY: `zeroed` has made `len` bytes of words, all initialised, borrowed as long as this is.
        unsafe { std::slice::from_raw_parts_mut(start, self.len) }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: as in `as_mut_slice`.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.len) }
    }
}

macro_rules! image {
    ($file:literal, $major:literal, $minor:literal) => {
        Image::new(
            concat!("the kernels' ", $file),
            ($major, $minor),
            include_bytes!(concat!("kernels/compiled/", $file, ".gz")),
        )
    };
}

/// In the order of their compute capabilities. What is compiled for sm_89 is the code of sm_86: `kernels/compile.py` sees to it.
static CUBINS: [Image; 7] = [
    image!("sm_70.cubin", 7, 0),
    image!("sm_75.cubin", 7, 5),
    image!("sm_80.cubin", 8, 0),
    image!("sm_86.cubin", 8, 6),
    image!("sm_90.cubin", 9, 0),
    image!("sm_100.cubin", 10, 0),
    image!("sm_120.cubin", 12, 0),
];

/// The driver compiles it for its device, which takes a while.
static PTX: Image = image!("compute_70.ptx", 7, 0);

/// What may be loaded on a device of that compute capability, best first: a cubin runs on its own architecture and later
/// ones of the same major version, a PTX on all later ones.
pub(super) fn candidates(major: usize, minor: usize) -> impl Iterator<Item = Image> {
    let cubin = CUBINS
        .iter()
        .rfind(|cubin| cubin.capability.0 == major && cubin.capability.1 <= minor);
    let ptx = ((major, minor) >= PTX.capability).then_some(&PTX);
    cubin.into_iter().chain(ptx).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(major: usize, minor: usize) -> Vec<&'static str> {
        candidates(major, minor)
            .map(|image| image.name().rsplit(' ').next().unwrap())
            .collect()
    }

    #[test]
    fn the_best_cubin_of_the_same_major_version_comes_first_and_then_the_ptx() {
        for ((major, minor), cubin) in [
            ((7, 0), "sm_70.cubin"),
            ((7, 2), "sm_70.cubin"),
            ((7, 5), "sm_75.cubin"),
            ((8, 0), "sm_80.cubin"),
            ((8, 6), "sm_86.cubin"),
            ((8, 7), "sm_86.cubin"),
            ((8, 9), "sm_86.cubin"),
            ((9, 0), "sm_90.cubin"),
            ((10, 0), "sm_100.cubin"),
            ((10, 3), "sm_100.cubin"),
            ((12, 0), "sm_120.cubin"),
            ((12, 1), "sm_120.cubin"),
        ] {
            assert_eq!(
                names(major, minor),
                [cubin, "compute_70.ptx"],
                "{major}.{minor}"
            );
        }
    }

    #[test]
    fn an_architecture_without_a_cubin_gets_the_ptx_and_one_that_is_too_old_nothing() {
        assert_eq!(names(11, 0), ["compute_70.ptx"]);
        assert_eq!(names(13, 0), ["compute_70.ptx"]);
        assert!(names(6, 1).is_empty());
        assert!(names(0, 0).is_empty());
    }

    #[test]
    fn images_unpack_to_what_the_driver_takes() {
        for image in &CUBINS {
            let bytes = image.bytes().unwrap();
            assert!(bytes.starts_with(b"\x7FELF"), "{}", image.name());
            assert_eq!(bytes.as_ptr().align_offset(8), 0);
        }
        let ptx = PTX.bytes().unwrap();
        let (end, text) = ptx.split_last().unwrap();
        assert_eq!(*end, 0);
        assert!(std::str::from_utf8(text).unwrap().contains(".target sm_70"));
    }

    #[test]
    fn every_image_has_every_kernel() {
        for image in CUBINS.iter().chain([&PTX]) {
            let bytes = image.bytes().unwrap();
            for (name, _) in super::super::KERNELS {
                let name = name.to_bytes();
                assert!(
                    bytes.windows(name.len()).any(|window| window == name),
                    "{} lacks {}",
                    image.name(),
                    name.escape_ascii()
                );
            }
        }
    }

    #[test]
    fn damage_is_an_error() {
        let mut image = PTX;
        image.deflated = &image.deflated[..image.deflated.len() / 2];
        assert!(image.bytes().is_err());
        image = PTX;
        image.size -= 1;
        assert!(image.bytes().is_err());
    }

    #[test]
    fn the_images_add_little_to_the_library() {
        let bytes: usize = CUBINS
            .iter()
            .chain([&PTX])
            .map(|image| image.deflated.len())
            .sum();
        assert!(bytes <= 1_500_000, "{bytes} bytes");
    }
}
