//! `cargo xtask bench remote`: the cost of ssh. The same work on one host, over a network, and through pcluster's tunnels, beside `scp` and
//! ipyparallel's own tunnel. The hosts are network namespaces of this machine (ci/ssh/up.sh), so it needs root. All clusters are up and
//! take turns.
use super::numbers::{Numbers, pairs, publish, table, thousands};
use super::timed;
use super::tools::Tools;
use crate::Places;
use crate::remote;
use crate::run::{captured, program};
use std::path::PathBuf;
use std::process::Command;

/// Of the array that is pushed, and of the file that is copied.
const MB: u32 = 100;

/// Of a full and a quick run.
const ROUNDS: [usize; 2] = [3, 1];
const TASKS: [u64; 2] = [20_000, 1_000];
/// Maps of one task in each round.
const SINGLES: [usize; 2] = [10, 2];
const CALLS: [&str; 2] = ["200", "10"];
const PUSHES: [&str; 2] = ["3", "1"];

/// Host, profile, and the further words of `pcluster start`.
const CLUSTERS: [(&str, &str, &str); 5] = [
    ("login", "local", "--launcher local"),
    ("node1", "far", "--ip 0.0.0.0"),
    ("login", "spread", "--launcher ssh --host node1:2 --tunnel never"),
    ("laptop", "reverse", "--launcher ssh --host node1:2 --tunnel always"),
    ("node1", "plain", "--ip 0.0.0.0 --set controller.curve=false"),
];

/// Routes from a client to engines: the client's host, and its profile there.
const ROUTES: [(&str, &str, &str); 7] = [
    ("client, controller, engines on one host", "login", "local"),
    ("client — *network* — controller and engines", "login", "far"),
    ("client — **`connect`** — controller and engines", "laptop", "far"),
    ("client and controller — *network* — engines (`--launcher ssh`)", "login", "spread"),
    ("client and controller — **reverse tunnel** — engines", "laptop", "reverse"),
    ("`connect`, without CURVE", "laptop", "plain"),
    ("ipyparallel's own tunnel, without CURVE", "laptop", STOCK),
];

/// Instead of a profile: the file with which ipyparallel's client opens its own tunnel.
const STOCK: &str = "plain.json";

const COPIES: [(&str, &str); 2] = [
    ("*limit: `scp` to the login host*", "login"),
    ("*limit: `scp` through it to a node*", "node1"),
];

pub fn run(places: &Places, quick: bool) -> Result<(), String> {
    let size = usize::from(quick);
    remote::ready(places)?;
    let mut tools = Tools::prepare(places, quick, &["ipyparallel", "numpy"], false)?;
    let ssh = captured(program(&places.root, &["sh", "-c", "ssh -V 2>&1"]).env("LC_ALL", "C"))?;
    tools
        .versions
        .extend(ssh.split(',').next().map(|version| version.trim().to_string()));
    let net = Net::up(&tools)?;
    let mut numbers = Numbers::default();
    net.start()?;
    for round in 1..=ROUNDS[size] {
        println!("  round {round} of {}", ROUNDS[size]);
        for (name, host, profile) in ROUTES {
            super::report(name, net.measure((name, host, profile), size, &mut numbers));
        }
        for (name, host) in COPIES {
            let copy = format!("{host}:bytes");
            numbers.add(
                format!("{name} push"),
                timed(&mut net.on("laptop", &["scp", "-q", "bytes", &copy]))?,
            );
        }
    }
    drop(net);
    let pages = [("docs/explanation/performance.md", lines(&numbers, size))];
    publish(places, &tools, ROUNDS[size], quick, "cargo xtask bench remote", &pages)
}

/// The hosts.
struct Net<'a> {
    tools: &'a Tools,
    state: PathBuf,
}

impl<'a> Net<'a> {
    fn up(tools: &'a Tools) -> Result<Net<'a>, String> {
        let state = tools.folder.join("remote-net");
        let net = Net { tools, state };
        // Removes the hosts of an interrupted run.
        net.down();
        captured(program(&tools.root, &["ci/ssh/up.sh", &net.state.to_string_lossy()]).env("SSHNET_PREFIX", "pb"))?;
        // ipyparallel runs `ssh -f`, which without a terminal of its own may receive a hangup before it has left ours.
        let script = "mkdir -p wrapped && printf '#!/bin/sh\\nexec setsid -w /usr/bin/ssh \"$@\"\\n' >wrapped/ssh && chmod 755 wrapped/ssh";
        captured(&mut program(&net.home("laptop"), &["sh", "-c", script]))?;
        Ok(net)
    }

    fn down(&self) {
        let state = self.state.to_string_lossy();
        let _ = captured(&mut program(&self.tools.root, &["ci/ssh/down.sh", &state, "--purge"]));
    }

    fn home(&self, host: &str) -> PathBuf {
        self.state.join(if host == "laptop" { "local" } else { "cluster" })
    }

    fn on(&self, host: &str, words: &[&str]) -> Command {
        let mut command = program(&self.tools.root, &[&self.state.join("on").to_string_lossy(), host]);
        command.args(words);
        command
    }

    fn pcluster(&self, host: &str, words: &str) -> Command {
        let pcluster = self.tools.pcluster.to_string_lossy();
        self.on(host, &std::iter::once(&*pcluster).chain(words.split(' ')).collect::<Vec<_>>())
    }

    fn start(&self) -> Result<(), String> {
        for (host, profile, more) in CLUSTERS {
            println!("  starting {profile} on {host}");
            let mut start = self.pcluster(host, &format!("start -n 2 --profile {profile} {more}"));
            captured(start.arg("--python").arg(&self.tools.python))?;
        }
        captured(&mut self.pcluster("laptop", "connect login --profile far"))?;
        captured(&mut self.pcluster("laptop", "connect login --profile plain"))?;
        captured(&mut self.pcluster("node1", "connection export plain.json --profile plain --ssh login"))?;
        captured(&mut self.on("laptop", &["scp", "-q", "login:plain.json", STOCK]))?;
        let (of, count) = (format!("of={}", self.home("laptop").join("bytes").display()), format!("count={MB}"));
        let words = ["dd", "if=/dev/urandom", &of, "bs=1000000", &count, "status=none"];
        captured(&mut program(&self.tools.root, &words)).map(drop)
    }

    fn measure(&self, route: (&str, &str, &str), size: usize, numbers: &mut Numbers) -> Result<(), String> {
        let (name, host, profile) = route;
        if profile != STOCK {
            numbers.add(format!("{name} rate"), TASKS[size] as f64 / self.map(host, profile, TASKS[size])?);
            for _ in 0..SINGLES[size] {
                numbers.add(format!("{name} single"), self.map(host, profile, 1)?);
            }
        }
        for words in [&["calls", CALLS[size], "1"][..], &["push", &MB.to_string(), PUSHES[size], "1"]] {
            for (key, value) in pairs(&self.client(host, profile, words)?) {
                numbers.add(format!("{name} {}", key.trim_end_matches("s_1").trim_end_matches("_1")), value);
            }
        }
        Ok(())
    }

    /// Seconds of the whole command.
    fn map(&self, host: &str, profile: &str, tasks: u64) -> Result<f64, String> {
        let mut command = self.pcluster(host, &format!("map --profile {profile} --range 0..{tasks}"));
        command.arg(format!("{}:noop", self.tools.root.join("benches/noop.py").display()));
        let began = std::time::Instant::now();
        let values = captured(&mut command)?.lines().count() as u64;
        let seconds = began.elapsed().as_secs_f64();
        match values == tasks {
            true => Ok(seconds),
            false => Err(format!("a map of {tasks} tasks returned {values} values")),
        }
    }

    /// `benches/peers/direct_view.py` in an unmodified client of ipyparallel's.
    fn client(&self, host: &str, profile: &str, words: &[&str]) -> Result<String, String> {
        let script = self.tools.root.join("benches/peers/direct_view.py");
        let file = match profile {
            STOCK => self.home(host).join(STOCK),
            _ => self
                .home(host)
                .join(format!(".ipython/profile_{profile}/security/ipcontroller-client.json")),
        };
        let path = format!("PATH={}:/usr/bin:/bin", self.home("laptop").join("wrapped").display());
        let (python, script, file) = (
            self.tools.python.to_string_lossy(),
            script.to_string_lossy(),
            file.to_string_lossy(),
        );
        captured(&mut self.on(
            host,
            &[&["env", &path, &python, "-W", "ignore", &script, &file, "2"][..], words].concat(),
        ))
    }
}

impl Drop for Net<'_> {
    fn drop(&mut self) {
        // The end of the hosts kills all processes; this lets them remove their files elsewhere.
        for (host, profile, _) in CLUSTERS {
            let _ = captured(&mut self.pcluster(host, &format!("stop --profile {profile}")));
        }
        for profile in ["far", "plain"] {
            let _ = captured(&mut self.pcluster("laptop", &format!("disconnect --profile {profile}")));
        }
        self.down();
    }
}

/// One line per route; a dash for missing values.
fn lines(numbers: &Numbers, size: usize) -> String {
    let map = format!("`pcluster map` of {} no-ops, tasks/s", thousands(TASKS[size] as f64));
    let push = format!("push of {MB} MB to one engine");
    let head = [
        "",
        &map,
        "… of one, whole command",
        "`dview.apply_sync` to one engine",
        &push,
        "MB/s",
    ];
    let names = ROUTES.iter().map(|(name, _, _)| name).chain(COPIES.iter().map(|(name, _)| name));
    let rows = names.map(|name| {
        let cell = |key: &str, shown: &dyn Fn(f64) -> String| numbers.cell(&format!("{name} {key}"), shown);
        let ms = |seconds: f64| format!("{:.1} ms", seconds * 1e3);
        [
            name.to_string(),
            cell("rate", &thousands),
            cell("single", &ms),
            cell("call", &ms),
            cell("push", &|seconds| format!("{seconds:.2} s")),
            cell("push", &|seconds| format!("{:.0}", f64::from(MB) / seconds)),
        ]
    });
    table(&head, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_per_route_and_a_dash_for_missing_values() {
        let (name, copy) = (ROUTES[2].0, COPIES[0].0);
        let mut numbers = Numbers::default();
        [30_000.0, 10_000.0, 20_000.0]
            .into_iter()
            .for_each(|rate| numbers.add(format!("{name} rate"), rate));
        numbers.add(format!("{name} single"), 0.0125);
        numbers.add(format!("{copy} push"), 0.5);
        let text = lines(&numbers, 1);
        assert!(text.contains(&format!("| {name} | 20,000 | 12.5 ms | – | – | – |\n")), "{text}");
        assert!(text.contains(&format!("| {copy} | – | – | – | 0.50 s | 200 |\n")), "{text}");
        assert_eq!(text.lines().count(), 2 + ROUTES.len() + COPIES.len());
    }
}
