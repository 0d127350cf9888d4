//! Detects files on file systems that several hosts may share.
//!
//! Source: statfs(2), linux/magic.h.
use nix::sys::statfs::statfs;
use std::path::Path;

/// NFS, SMB, CIFS, Ceph, FUSE (sshfs and others), 9p, AFS, Lustre, GPFS, BeeGFS, PanFS, GFS2, OCFS2, VBoxSF.
const SHARED: [u32; 15] = [
    0x6969,
    0xff53_4d42,
    0xfe53_4d42,
    0x00c3_6400,
    0x6573_5546,
    0x0102_1997,
    0x5346_414f,
    0x0bd0_0bd0,
    0x4750_4653,
    0x1983_0326,
    0xaad7_aaea,
    0x0116_1970,
    0x7461_636f,
    0x786f_4256,
    0x517b,
];

/// Returns whether other hosts may see this file; true if unknown.
pub(crate) fn may_be_shared(path: &Path) -> bool {
    statfs(path).map_or(true, |found| is_shared(found.filesystem_type().0 as u32))
}

fn is_shared(magic: u32) -> bool {
    SHARED.contains(&magic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_file_systems_are_not_shared() {
        // ext4, tmpfs, xfs, btrfs, overlayfs.
        for own in [0xef53, 0x0102_1994, 0x5846_5342, 0x9123_683e, 0x794c_7630] {
            assert!(!is_shared(own), "{own:x}");
        }
        assert!(is_shared(0x6969) && !may_be_shared(Path::new("/proc")));
        assert!(may_be_shared(Path::new("/nonexistent")));
    }
}
