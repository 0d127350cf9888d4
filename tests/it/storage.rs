//! Disks that are full, databases that are not ours or broken, and two controllers that want the same one.
use super::support::{Cluster, Home, Running, skip, wait_until};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn database(home: &Home) -> PathBuf {
    home.profile().join("pcluster.db")
}

/// Runs Python on the database's file, as `c` for its connection.
fn with_sqlite(path: &Path, script: &str) {
    let script = format!("import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], isolation_level=None)\n{script}\nc.close()");
    let done = Command::new("python3").args(["-c", &script]).arg(path).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

fn is_left_alone(home: &Home, before: &[u8]) {
    assert!(fs::read(database(home)).unwrap() == before, "the file is as it was");
    home.run(&["status"]).fails(3, &["pcluster start"]);
    for name in ["pid", "security"] {
        assert_eq!(fs::read_dir(home.profile().join(name)).unwrap().count(), 0, "{name}");
    }
}

#[test]
fn an_unusable_database_fails_the_start_and_is_unchanged() {
    let home = Home::new();
    fs::create_dir_all(home.profile()).unwrap();
    let begins = ["start", "-n", "0"];
    // Of another program, or none at all.
    fs::write(database(&home), "a text, and a long one".repeat(500)).unwrap();
    let before = fs::read(database(&home)).unwrap();
    home.run(&begins)
        .fails(5, &["not an SQLite database", "pcluster.db", "move it away"]);
    is_left_alone(&home, &before);
    fs::remove_file(database(&home)).unwrap();
    with_sqlite(&database(&home), "c.execute('CREATE TABLE theirs (x)')");
    let before = fs::read(database(&home)).unwrap();
    home.run(&begins).fails(5, &["of another program", "move it away"]);
    home.run(&["results"]).fails(5, &["of another program"]);
    is_left_alone(&home, &before);
    fs::remove_file(database(&home)).unwrap();
    // Ours, and from the future.
    home.ok(&begins);
    home.ok(&["stop"]);
    with_sqlite(&database(&home), "c.execute('PRAGMA user_version = 1000')");
    let before = fs::read(database(&home)).unwrap();
    home.run(&begins).fails(5, &["version 1000", "newer"]);
    home.run(&["results"]).fails(5, &["version 1000", "newer"]);
    is_left_alone(&home, &before);
    // Ours, and broken: all its tables are malformed.
    let mut broken = before.clone();
    broken[4096..].fill(0x5a);
    fs::write(database(&home), &broken).unwrap();
    with_sqlite_version(&home, 1000);
}

/// The version is in the header of the file.
fn with_sqlite_version(home: &Home, was: u32) {
    let mut bytes = fs::read(database(home)).unwrap();
    assert_eq!(bytes[60..64], was.to_be_bytes());
    bytes[60..64].copy_from_slice(&1u32.to_be_bytes());
    fs::write(database(home), &bytes).unwrap();
    home.run(&["start", "-n", "0"])
        .fails(5, &["malformed", "PRAGMA quick_check", ".recover"]);
    is_left_alone(home, &bytes);
}

#[test]
fn a_database_locked_by_another_process_is_reported() {
    let cluster = Cluster::start(0);
    cluster.ok(&["stop"]);
    // It holds the file until its stdin ends.
    let script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('PRAGMA locking_mode = EXCLUSIVE'); \
                  c.execute('BEGIN EXCLUSIVE'); c.execute('CREATE TABLE x (y)'); print('locked', flush=True); sys.stdin.read()";
    let mut other = Command::new("python3")
        .args(["-c", script])
        .arg(database(&cluster))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(other.stdout.take().unwrap()), &mut line).unwrap();
    assert_eq!(line, "locked\n");
    cluster
        .start_again(0, &["--set", "launcher.controller_timeout_ms=60000"])
        .fails(5, &["locked", "fuser"]);
    drop(other.stdin.take());
    other.wait().unwrap();
    cluster.start_again(0, &[]).ok();
    cluster.ok(&["stop"]);
}

#[test]
fn of_several_concurrent_controllers_one_serves_and_the_others_report_it() {
    let home = Home::new();
    let mut all: Vec<_> = (0..4).map(|_| home.spawn(&["controller"])).collect();
    let file = home.profile().join("security/ipcontroller-client.json");
    let serving = wait_until("one of them to serve", || {
        let text = fs::read(&file).ok()?;
        let keys: serde_json::Value = serde_json::from_slice(&text).ok()?;
        u32::try_from(keys["pcluster"]["pid"].as_u64()?).ok()
    });
    let at = all.iter().position(|running| running.pid() == serving).expect("one of ours");
    let first = all.remove(at);
    for other in all {
        other
            .end()
            .fails(4, &["is already running", &format!("pid {serving}"), "pcluster stop"]);
    }
    // They have not changed the files of the first one.
    home.ok(&["status"]);
    home.ok(&["stop"]);
    first.end().ok();
    assert_eq!(fs::read_dir(home.profile().join("pid")).unwrap().count(), 0);
}

/// A small separate file system, unmounted on drop.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// None without permission.
    fn at(path: &Path, size: &str) -> Option<SmallDisk> {
        fs::create_dir_all(path).unwrap();
        let mounted = nix::unistd::geteuid().is_root()
            && Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={size},mode=0700"), "tmpfs"])
                .arg(path)
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success());
        mounted.then(|| SmallDisk(path.to_path_buf()))
    }

    /// ext4 in a file beside it.
    fn ext4_at(path: &Path, size: u64) -> Option<SmallDisk> {
        fs::create_dir_all(path).unwrap();
        let image = path.with_extension("ext4");
        fs::File::create(&image).unwrap().set_len(size).unwrap();
        let run = |command: &mut Command| command.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        let mounted = nix::unistd::geteuid().is_root()
            && run(Command::new("mkfs.ext4")
                .args(["-q", "-F", "-m", "0"])
                .arg(&image)
                .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin"))
            && run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(path));
        mounted.then(|| {
            let root = fs::File::open(path).unwrap();
            root.set_permissions(fs::Permissions::from_mode(0o700)).unwrap();
            SmallDisk(path.to_path_buf())
        })
    }

    /// Nothing more fits on it; to be removed again.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("ballast");
        let mut file = fs::File::create(&path).unwrap();
        for size in [65536, 4096, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_pauses_everything_until_space_is_available() {
    let home = Home::new();
    let Some(disk) = SmallDisk::at(&home.profile(), "64m") else {
        skip("only root can mount a small file system");
        return;
    };
    // The error can be logged, as the log is on another disk.
    fs::create_dir(home.path().join("log")).unwrap();
    std::os::unix::fs::symlink(home.path().join("log"), home.profile().join("log")).unwrap();
    let cluster = Cluster::start_in(home, 2, &[]);
    assert_eq!(cluster.ok(&["map", "math:sqrt", "--range", "0..2"]), "0.0\n1.0\n");
    let ballast = disk.fill();
    let (running, expected) = long_lines(&cluster);
    let log = cluster.path().join("log/controller.log");
    wait_until("the controller to say it", || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        (text.contains("cannot write the records") && text.contains("df -h")).then_some(())
    });
    fs::remove_file(ballast).unwrap();
    assert!(running.end().ok() == expected, "all values, in order");
    let maps = cluster.json(&["results"]);
    assert_eq!(maps["maps"].as_array().unwrap().len(), 2, "{maps:#}");
    assert_eq!(maps["maps"][1]["ok"], 20_000, "{maps:#}");
    cluster.ok(&["stop"]);
    with_sqlite(
        &database(&cluster),
        "assert c.execute('PRAGMA quick_check').fetchall() == [('ok',)]",
    );
    drop(disk);
}

/// A map whose inputs do not fit on a full disk, and its output.
fn long_lines(cluster: &Cluster) -> (Running, String) {
    let words = "x".repeat(200);
    let lines: String = (0..20_000).map(|n| format!("{n} {words}\n")).collect();
    cluster.file("lines", &lines);
    let expected = lines.lines().map(|line| format!("{}\n", line.len())).collect();
    (cluster.spawn(&["map", "builtins:len", "lines"]), expected)
}

/// Whether the controller gives no answer: it answers nothing that it cannot record.
fn is_silent(cluster: &Cluster) -> bool {
    let mut asking = cluster.spawn(&["status"]);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(10) {
        if asking.has_ended() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}

/// Records, log and connection files are on the disk that is full, as they are in a home directory over its quota.
fn a_full_disk_holds_up_and_loses_nothing(home: Home, disk: SmallDisk) {
    let cluster = Cluster::start_in(home, 2, &[]);
    assert_eq!(cluster.ok(&["map", "math:sqrt", "--range", "0..2"]), "0.0\n1.0\n");
    let ballast = disk.fill();
    let (running, expected) = long_lines(&cluster);
    wait_until("the controller to wait for room", || is_silent(&cluster).then_some(()));
    fs::remove_file(ballast).unwrap();
    assert!(running.end().ok() == expected, "all values, in order");
    assert_eq!(cluster.json(&["results"])["maps"][1]["ok"], 20_000);
    assert_eq!(cluster.engine_pids().len(), 2);
    cluster.ok(&["stop"]);
    // What was to be logged meanwhile either found room in the last block, or is counted.
    let log = fs::read_to_string(cluster.profile().join("log/controller.log")).unwrap();
    let is_logged = ["cannot write the records", "lines of the log were dropped"];
    assert!(is_logged.iter().any(|words| log.contains(words)), "{log}");
    with_sqlite(
        &database(&cluster),
        "assert c.execute('PRAGMA quick_check').fetchall() == [('ok',)]",
    );
    drop(disk);
}

#[test]
fn a_full_tmpfs_with_records_and_log_holds_up_and_loses_nothing() {
    let home = Home::new();
    match SmallDisk::at(&home.profile(), "64m") {
        Some(disk) => a_full_disk_holds_up_and_loses_nothing(home, disk),
        None => skip("only root can mount a small file system"),
    }
}

#[test]
fn a_full_ext4_with_records_and_log_holds_up_and_loses_nothing() {
    let home = Home::new();
    match SmallDisk::ext4_at(&home.profile(), 64 << 20) {
        Some(disk) => a_full_disk_holds_up_and_loses_nothing(home, disk),
        None => skip("only root can mount an ext4 image, where there are mkfs.ext4 and loop devices"),
    }
}
