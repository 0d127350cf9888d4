//! Scripts of the POSIX shell for other hosts: quoting, their output between two markers, and functions to inspect processes.

const BEGIN: &str = "=== pcluster begins ===";
const END: &str = "=== pcluster ends ===";

/// Functions of scripts, from proc_pid_stat(5). `stat_fields PID` reads a process's line into `s`, and its fields from the third (its
/// state) on into `f`; `start_ticks PID` its start time into `t`, and fails if it has ended; `is_same PID:TICKS` succeeds if it runs
/// and is the process that started then.
pub(crate) const PROCESS_FUNCTIONS: &str = r#"stat_fields() { s=; { read -r s <"/proc/$1/stat"; } 2>/dev/null || return 1; f=${s##*) }; }
start_ticks() { t=; stat_fields "$1" || return 1; set -- $f; case $1 in Z|X) return 1 ;; esac; t=${20}; }
is_same() { start_ticks "${1%:*}" && [ "$t" = "${1#*:}" ]; }
"#;

/// The command that prints the first marker: output before it may come from the shell's start-up files.
pub(crate) fn begin() -> String {
    format!("echo '{BEGIN}'")
}

pub(crate) fn marked(script: &str) -> String {
    format!("{}\n{script}\necho '{END}'\n", begin())
}

/// The output of a marked script; none if it did not run to its end.
pub(crate) fn between_marks(stdout: &str) -> Option<&str> {
    Some(stdout.split_once(&format!("{BEGIN}\n"))?.1.split_once(END)?.0)
}

/// The output after the first marker; all if there is none.
pub(crate) fn after_begin(mut stdout: Vec<u8>) -> Vec<u8> {
    let mark = format!("{BEGIN}\n");
    if let Some(at) = stdout.windows(mark.len()).position(|part| part == mark.as_bytes()) {
        stdout.drain(..at + mark.len());
    }
    stdout
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str) -> String {
        let output = std::process::Command::new("sh").args(["-c", script]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_login_banner_is_not_output_of_the_script() {
        let printed = format!("echo Welcome\n{}echo 'until next time'", marked("echo one\necho two"));
        assert_eq!(between_marks(&run(&printed)), Some("one\ntwo\n"));
        assert_eq!(between_marks(&run(&marked("exit 0"))), None, "it did not run to its end");
        assert_eq!(between_marks("Welcome\n"), None);
        let printed = run(&format!("echo Welcome; {}; echo '{{}}'", begin()));
        assert_eq!(after_begin(printed.into_bytes()), b"{}\n");
        assert_eq!(after_begin(b"no such shell\n".to_vec()), b"no such shell\n");
    }

    #[test]
    fn a_process_is_identified_by_its_start_time() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        let ticks = crate::sys::process::ProcessId::of(pid).ticks.unwrap();
        let is_same = |ticks: u64| run(&format!("{PROCESS_FUNCTIONS}is_same {pid}:{ticks} && echo yes"));
        assert_eq!((is_same(ticks).as_str(), is_same(ticks + 1).as_str()), ("yes\n", ""));
        let parent = run(&format!("{PROCESS_FUNCTIONS}stat_fields {pid} && set -- $f && echo \"$2\""));
        assert_eq!(parent, format!("{}\n", std::process::id()));
        child.kill().unwrap();
        // Not waited for: a zombie has ended.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !is_same(ticks).is_empty() {
            assert!(std::time::Instant::now() < deadline, "a killed process still counts as running");
        }
        child.wait().unwrap();
    }
}
