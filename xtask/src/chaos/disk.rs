//! A disk for the profile that can be made full: a tmpfs whose size is changed. Only root can mount one.
use crate::run::{captured, program};
use std::path::{Path, PathBuf};

/// Bytes that are free when it is not full.
const ROOM: u64 = 4 << 30;

pub struct Disk(PathBuf);

impl Disk {
    /// None where that may not be done.
    pub fn at(folder: &Path) -> Option<Disk> {
        let path = folder.to_string_lossy();
        let options = format!("size={ROOM},mode=0700");
        let words = ["mount", "-t", "tmpfs", "-o", &options, "tmpfs", &path];
        captured(&mut program(folder, &words)).ok()?;
        Some(Disk(folder.to_path_buf()))
    }

    /// No page more fits.
    pub fn fill(&self) -> Result<(), String> {
        self.resize(0)
    }

    pub fn make_room(&self) -> Result<(), String> {
        self.resize(ROOM)
    }

    /// To what is used, and `room` more.
    fn resize(&self, room: u64) -> Result<(), String> {
        let path = self.0.to_string_lossy();
        let mut resized = Err(String::new());
        // What is written meanwhile makes a size too small: then a little more, which is soon written, too.
        for attempt in 0..20 {
            let options = format!("remount,size={}", self.used()? + room + attempt * 4096 * attempt);
            resized = captured(&mut program(Path::new("/"), &["mount", "-o", &options, &path]));
            if resized.is_ok() {
                break;
            }
        }
        resized.map(|_| ())
    }

    fn used(&self) -> Result<u64, String> {
        let path = self.0.to_string_lossy();
        let output = captured(&mut program(Path::new("/"), &["df", "--output=used", "-B1", &path]))?;
        let number = output.lines().nth(1).and_then(|line| line.trim().parse().ok());
        number.ok_or_else(|| format!("df did not report the use of {path}: {output}"))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let path = self.0.to_string_lossy();
        let _ = captured(&mut program(Path::new("/"), &["umount", "--lazy", &path]));
    }
}
