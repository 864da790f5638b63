//! A directory that goes when the test ends.

use std::path::{Path, PathBuf};

use tidegate_core::clock::{Random, SystemRandom};
use tidegate_core::error::StoreError;
use tidegate_core::id::Hex;

#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Result<Self, StoreError> {
        let mut name = [0; 8];
        SystemRandom.fill(&mut name);
        let path = std::env::temp_dir().join(format!("tidegate-test-{}", Hex(&name)));
        std::fs::create_dir(&path).map_err(|e| {
            StoreError::unavailable(format!("cannot make the test's directory {}", path.display())).source(e)
        })?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be deleted now is deleted by whoever tidies the temporary directory; a test does not fail for it.
        drop(std::fs::remove_dir_all(&self.0));
    }
}
