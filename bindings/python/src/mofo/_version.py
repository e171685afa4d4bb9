"""The package's version, which is the library's: Cargo.toml has the same (a test compares them)."""

__version__ = "0.1.0"
