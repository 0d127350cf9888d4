//! The workloads: each with its command and expected output.
use super::Chaos;
use std::fs::{self, File};
use std::process::{Child, Stdio};

pub const WORK: &str = include_str!("work.py");
pub const CLIENT: &str = include_str!("client.py");

/// Bytes that each command writes to stdout.
const COMMAND_OUTPUT: usize = 1_500_000;
/// Characters of each large value behind its input.
const LARGE: usize = 5_000_000;
/// Requests of an ipyparallel client that are outstanding at once.
const REQUESTS: u64 = 2_000;

/// $1: the input. Parent: the engine.
const COMMAND: &str = r#"echo "$1 $PPID $$" >>ledger; yes "$1" | head -c 1500000"#;

/// $1 pcluster, $2 name, $3 first range, $4 second range: a map, and one that waits for it.
const CHAIN: &str = r#"
first=$("$1" map work.py:work --range "$3" --name "$2-first" --max-crashes 1000 --detach) || exit $?
exec "$1" map work.py:work --range "$4" --name "$2" --max-crashes 1000 --after "$first"
"#;

/// $1 pcluster, $2 name, $3 range: a map that another command waits for. 3 and 4: no controller can be reached.
const DETACHED: &str = r#"
map=$("$1" map work.py:work --range "$3" --name "$2" --max-crashes 1000 --detach) || exit $?
until "$1" wait "$map"; do
    code=$?
    [ $code = 3 ] || [ $code = 4 ] || exit $code
    sleep 0.3
done
"#;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Values of a function.
    Function,
    /// More than 1 MiB of output of each command.
    Command,
    /// Values of 5 MB.
    Large,
    /// `--reduce`.
    Reduce,
    /// `--after`.
    Chain,
    /// `--detach`, and `wait`.
    Detached,
    /// An unmodified ipyparallel client.
    Client,
}

/// One command that runs, or has run.
pub struct Map {
    pub name: String,
    pub workload: Workload,
    pub first: u64,
    pub count: u64,
    pub child: Child,
    pub code: Option<Option<i32>>,
}

/// The tasks of one map on record: its name, first input, and number.
pub struct Part {
    pub name: String,
    pub first: u64,
    pub count: u64,
}

/// The value of a task of [`WORK`], except a large one.
pub fn expected(input: u64) -> u64 {
    input * input + 1
}

pub fn expected_large(input: u64) -> String {
    format!("{input}:{}", "x".repeat(LARGE))
}

impl Workload {
    fn choose(chaos: &mut Chaos) -> (Workload, u64) {
        match chaos.dice.roll(100) {
            0..58 => (Workload::Function, 20 + chaos.dice.roll(400)),
            58..66 => (Workload::Command, 3 + chaos.dice.roll(6)),
            66..71 => (Workload::Large, 2 + chaos.dice.roll(5)),
            71..80 => (Workload::Reduce, 20 + chaos.dice.roll(200)),
            80..88 => (Workload::Chain, 20 + chaos.dice.roll(100)),
            _ => (Workload::Detached, 20 + chaos.dice.roll(200)),
        }
    }
}

impl Map {
    /// The maps that it makes, the last one last.
    pub fn parts(&self) -> Vec<Part> {
        let part = |name: String, first, count| Part { name, first, count };
        match self.workload {
            Workload::Client => Vec::new(),
            Workload::Chain => {
                let half = self.count / 2;
                vec![
                    part(format!("{}-first", self.name), self.first, half),
                    part(self.name.clone(), self.first + half, self.count - half),
                ]
            }
            _ => vec![part(self.name.clone(), self.first, self.count)],
        }
    }

    /// What it must have printed on stdout; None: that is not looked at.
    pub fn expected_output(&self) -> Option<Vec<u8>> {
        let inputs = self.first..self.first + self.count;
        let line = |n: u64| format!("{}\n", expected(n));
        match self.workload {
            Workload::Function => Some(inputs.map(line).collect::<String>().into_bytes()),
            Workload::Chain => Some((self.first + self.count / 2..inputs.end).map(line).collect::<String>().into_bytes()),
            Workload::Reduce => Some(format!("{}\n", inputs.map(expected).sum::<u64>()).into_bytes()),
            Workload::Large => Some(
                inputs
                    .map(|n| format!("\"{}\"\n", expected_large(n)))
                    .collect::<String>()
                    .into_bytes(),
            ),
            Workload::Command => Some(inputs.flat_map(output_of_command).collect()),
            Workload::Detached | Workload::Client => None,
        }
    }
}

fn output_of_command(input: u64) -> Vec<u8> {
    let line = format!("{input}\n");
    let mut output = line.repeat(COMMAND_OUTPUT / line.len() + 1).into_bytes();
    output.truncate(COMMAND_OUTPUT);
    output
}

impl Chaos {
    /// Submits until enough runs.
    pub fn submit(&mut self) -> Result<(), String> {
        while self.unfinished() < super::MAPS {
            let (workload, count) = Workload::choose(self);
            self.submit_one(workload, count)?;
        }
        let has_client = self.maps.iter().any(|map| map.workload == Workload::Client && map.code.is_none());
        if self.client_python.is_some() && !has_client && self.dice.roll(20) == 0 {
            self.submit_one(Workload::Client, REQUESTS)?;
        }
        Ok(())
    }

    fn submit_one(&mut self, workload: Workload, count: u64) -> Result<(), String> {
        let name = format!("chaos-{}", self.maps.len());
        let (first, end) = (self.next_input, self.next_input + count);
        let range = format!("{first}..{end}");
        let pcluster = self.pcluster.to_string_lossy().into_owned();
        let map = ["--range", &range, "--name", &name, "--max-crashes", "1000"];
        let mut command = match workload {
            Workload::Function => self.command_of(&[&["map", "work.py:work"], &map[..]].concat()),
            Workload::Large => self.command_of(&[&["map", "work.py:large"], &map[..]].concat()),
            Workload::Reduce => self.command_of(&[&["map", "work.py:work", "--reduce", "work.py:add"], &map[..]].concat()),
            Workload::Command => self.command_of(&[&["map"], &map[..], &["--", "sh", "-c", COMMAND, "sh", "{}"]].concat()),
            Workload::Chain => {
                let middle = first + count / 2;
                let (one, two) = (format!("{first}..{middle}"), format!("{middle}..{end}"));
                self.script(CHAIN, &[&pcluster, &name, &one, &two])
            }
            Workload::Detached => self.script(DETACHED, &[&pcluster, &name, &range]),
            Workload::Client => {
                let python = self.client_python.clone().unwrap_or_default();
                let profile = self.home.join("ipython/profile_default");
                let database = profile.join("pcluster.db");
                let (profile, database) = (profile.to_string_lossy(), database.to_string_lossy());
                self.other_program(&[&python, "client.py", &profile, &database, &first.to_string(), &count.to_string()])
            }
        };
        let file = |extension: &str| File::create(self.home.join(format!("{name}.{extension}"))).map_err(|e| e.to_string());
        let child = command
            .stdin(Stdio::null())
            .stdout(file("out")?)
            .stderr(file("err")?)
            .spawn()
            .map_err(|e| e.to_string())?;
        let code = None;
        self.maps.push(Map {
            name,
            workload,
            first,
            count,
            child,
            code,
        });
        self.next_input = end;
        Ok(())
    }

    /// How many maps run; an ipyparallel client is none.
    pub fn unfinished(&mut self) -> usize {
        let mut running = 0;
        let home = self.home.clone();
        for map in self.maps.iter_mut().filter(|map| map.code.is_none()) {
            match map.child.try_wait() {
                Ok(Some(status)) => {
                    map.code = Some(status.code());
                    compare_output(map, &home);
                }
                _ if map.workload == Workload::Client => {}
                _ => running += 1,
            }
        }
        running
    }

    pub fn clients_running(&self) -> usize {
        let of_clients = self
            .maps
            .iter()
            .filter(|map| map.workload == Workload::Client && map.code.is_none());
        of_clients.count()
    }
}

/// Large outputs that are right need not be kept until the end.
fn compare_output(map: &Map, home: &std::path::Path) {
    if !matches!(map.workload, Workload::Large | Workload::Command) || map.code != Some(Some(0)) {
        return;
    }
    let path = home.join(format!("{}.out", map.name));
    if map
        .expected_output()
        .is_some_and(|expected| fs::read(&path).is_ok_and(|out| out == expected))
    {
        let _ = fs::write(&path, "right");
    }
}

/// Whether its output is correct.
pub fn output_is_right(map: &Map, home: &std::path::Path) -> bool {
    let Some(expected) = map.expected_output() else { return true };
    let out = fs::read(home.join(format!("{}.out", map.name))).unwrap_or_default();
    out == expected || out == b"right" && matches!(map.workload, Workload::Large | Workload::Command)
}
