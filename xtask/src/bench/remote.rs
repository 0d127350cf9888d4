//! `cargo xtask bench remote`: the cost of ssh. The same work on one host, over a network, and through pcluster's tunnels, beside `scp` and
//! ipyparallel's own tunnel. The hosts are network namespaces of this machine (ci/ssh/up.sh), so it needs root. In every round each route
//! has its turn; all clusters are up meanwhile.
use super::pages;
use super::table::{self, median, thousands};
use super::tools::Tools;
use crate::Places;
use crate::remote;
use crate::run::{captured, program};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

const MARK: &str = "cargo xtask bench remote";
/// Of the array that is pushed, and of the file that is copied; MB.
const MB: u32 = 100;

struct Size {
    rounds: usize,
    tasks: u64,
    /// Maps of one task in each round.
    singles: usize,
    calls: &'static str,
    pushes: &'static str,
}

const FULL: Size = Size {
    rounds: 3,
    tasks: 20_000,
    singles: 10,
    calls: "200",
    pushes: "3",
};

const QUICK: Size = Size {
    rounds: 1,
    tasks: 1_000,
    singles: 2,
    calls: "10",
    pushes: "1",
};

/// A route from a client to engines: what it is called, the client's host, and its profile there.
struct Route {
    name: &'static str,
    host: &'static str,
    profile: &'static str,
    /// It is ipyparallel's: the file that names the ssh server, and no commands of pcluster's.
    file: Option<&'static str>,
}

const ROUTES: [Route; 7] = [
    Route::new("client, controller, engines on one host", "login", "local"),
    Route::new("client — *network* — controller and engines", "login", "far"),
    Route::new("client — **`connect`** — controller and engines", "laptop", "far"),
    Route::new("client and controller — *network* — engines (`--launcher ssh`)", "login", "spread"),
    Route::new("client and controller — **reverse tunnel** — engines", "laptop", "reverse"),
    Route::new("`connect`, without CURVE", "laptop", "plain"),
    Route {
        name: "ipyparallel's own tunnel, without CURVE",
        host: "laptop",
        profile: "plain",
        file: Some("plain.json"),
    },
];

const COPIES: [(&str, &str); 2] = [
    ("*limit: `scp` to the login host*", "login"),
    ("*limit: `scp` through it to a node*", "node1"),
];

impl Route {
    const fn new(name: &'static str, host: &'static str, profile: &'static str) -> Route {
        Route {
            name,
            host,
            profile,
            file: None,
        }
    }
}

/// The values of the rounds, by route and name of the value.
type Found = BTreeMap<(&'static str, &'static str), Vec<f64>>;

/// With `quick` one round of little work, of the development build, and only printed.
pub fn run(places: &Places, quick: bool) -> Result<(), String> {
    let size = if quick { QUICK } else { FULL };
    remote::ready(places)?;
    let mut tools = Tools::for_client(places, quick)?;
    let said = captured(program(&places.root, &["sh", "-c", "ssh -V 2>&1"]).env("LC_ALL", "C"))?;
    tools
        .versions
        .extend(said.split(',').next().map(|version| version.trim().to_string()));
    let net = Net::up(&tools)?;
    let mut found = Found::new();
    net.start()?;
    for round in 1..=size.rounds {
        println!("  round {round} of {}", size.rounds);
        for route in &ROUTES {
            if let Err(why) = net.measure(route, &size, &mut found) {
                println!("    {} failed: {why}", route.name);
            }
        }
        for (name, host) in COPIES {
            let seconds = net.copy(host)?;
            println!("    scp to {host}: {seconds:.2} s");
            found.entry((name, "push")).or_default().push(seconds);
        }
    }
    drop(net);
    let build = if quick { "The development build; one round.\n" } else { "" };
    let text = format!("{}{build}\n{}", table::head(places, size.rounds, &tools), table(&found, &size));
    let kept = tools.folder.join("remote.md");
    fs::write(&kept, &text).map_err(|e| format!("cannot write {}: {e}", kept.display()))?;
    println!("\n{text}");
    if quick {
        println!("(--quick: no page is changed; the table is in {})", kept.display());
        return Ok(());
    }
    pages::put_marked(&places.root.join("docs/explanation/performance.md"), MARK, &text)
}

/// The hosts.
struct Net<'a> {
    tools: &'a Tools,
    state: PathBuf,
}

impl<'a> Net<'a> {
    fn up(tools: &'a Tools) -> Result<Net<'a>, String> {
        let net = Net {
            tools,
            state: tools.folder.join("remote-net"),
        };
        // Stops what an interrupted run has left.
        net.down();
        let state = net.state.to_string_lossy().into_owned();
        captured(program(&tools.root, &["ci/ssh/up.sh", &state]).env("SSHNET_PREFIX", "pb"))?;
        // ipyparallel runs `ssh -f`, which without a terminal of its own may be hung up before it has left ours.
        let wrapper = net.home("laptop").join("wrapped/ssh");
        let script = "#!/bin/sh\nexec setsid -w /usr/bin/ssh \"$@\"\n";
        let made = fs::create_dir_all(net.home("laptop").join("wrapped")).and_then(|()| fs::write(&wrapper, script));
        made.map_err(|e| format!("cannot write {}: {e}", wrapper.display()))?;
        captured(&mut program(&tools.root, &["chmod", "755", &wrapper.to_string_lossy()]))?;
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

    fn pcluster(&self, host: &str, words: &[&str]) -> Result<String, String> {
        let pcluster = self.tools.pcluster.to_string_lossy();
        let all = [&[&*pcluster], words].concat();
        captured(&mut self.on(host, &all))
    }

    fn start(&self) -> Result<(), String> {
        let python = self.tools.python.to_string_lossy();
        let start = |host: &str, profile: &str, more: &[&str]| {
            println!("  starting {profile} on {host}");
            let words = [&["start", "-n", "2", "--python", &python, "--profile", profile], more].concat();
            self.pcluster(host, &words)
        };
        start("login", "local", &[])?;
        start("node1", "far", &["--ip", "0.0.0.0"])?;
        start("login", "spread", &["--launcher", "ssh", "--host", "node1:2", "--tunnel", "never"])?;
        start(
            "laptop",
            "reverse",
            &["--launcher", "ssh", "--host", "node1:2", "--tunnel", "always"],
        )?;
        start("node1", "plain", &["--ip", "0.0.0.0", "--set", "controller.curve=false"])?;
        self.pcluster("laptop", &["connect", "login", "--profile", "far"])?;
        self.pcluster("laptop", &["connect", "login", "--profile", "plain"])?;
        self.pcluster(
            "node1",
            &["connection", "export", "plain.json", "--profile", "plain", "--ssh", "login"],
        )?;
        captured(&mut self.on("laptop", &["scp", "-q", "login:plain.json", "plain.json"]))?;
        let file = self.home("laptop").join("bytes");
        let (of, count) = (format!("of={}", file.display()), format!("count={MB}"));
        captured(&mut program(
            &self.tools.root,
            &["dd", "if=/dev/urandom", &of, "bs=1000000", &count, "status=none"],
        ))?;
        Ok(())
    }

    fn measure(&self, route: &Route, size: &Size, found: &mut Found) -> Result<(), String> {
        let mut add = |name: &'static str, value: f64| found.entry((route.name, name)).or_default().push(value);
        if route.file.is_none() {
            let seconds = self.map(route, size.tasks)?;
            add("rate", size.tasks as f64 / seconds);
            for _ in 0..size.singles {
                add("single", self.map(route, 1)?);
            }
        }
        for words in [&["calls", size.calls, "1"][..], &["push", &MB.to_string(), size.pushes, "1"]] {
            let values = self.client(route, words)?;
            for (key, name) in [("calls_1", "call"), ("push_1", "push")] {
                values.get(key).into_iter().for_each(|value| add(name, *value));
            }
        }
        println!("    {}", route.name);
        Ok(())
    }

    /// Seconds of a whole command.
    fn map(&self, route: &Route, tasks: u64) -> Result<f64, String> {
        let function = format!("{}:noop", self.tools.root.join("benches/noop.py").display());
        let range = format!("0..{tasks}");
        let began = Instant::now();
        let values = self.pcluster(route.host, &["map", "--profile", route.profile, &function, "--range", &range])?;
        let seconds = began.elapsed().as_secs_f64();
        match values.lines().count() as u64 == tasks {
            true => Ok(seconds),
            false => Err(format!("a map of {tasks} tasks gave {} values", values.lines().count())),
        }
    }

    /// `benches/peers/direct_view.py` in an unmodified client of ipyparallel's.
    fn client(&self, route: &Route, words: &[&str]) -> Result<BTreeMap<String, f64>, String> {
        let script = self.tools.root.join("benches/peers/direct_view.py");
        let folder = self.home(route.host);
        let file = match route.file {
            Some(file) => folder.join(file),
            None => {
                let profile = format!(".ipython/profile_{}/security/ipcontroller-client.json", route.profile);
                folder.join(profile)
            }
        };
        let path = format!("PATH={}:/usr/bin:/bin", self.home("laptop").join("wrapped").display());
        let (python, script, file) = (
            self.tools.python.to_string_lossy(),
            script.to_string_lossy(),
            file.to_string_lossy(),
        );
        let all = [&["env", &path, &python, "-W", "ignore", &script, &file, "2"][..], words].concat();
        Ok(super::side::values(&captured(&mut self.on(route.host, &all))?))
    }

    /// Seconds for the file to be there.
    fn copy(&self, host: &str) -> Result<f64, String> {
        let there = format!("{host}:bytes");
        let began = Instant::now();
        captured(&mut self.on("laptop", &["scp", "-q", "bytes", &there]))?;
        Ok(began.elapsed().as_secs_f64())
    }
}

impl Drop for Net<'_> {
    fn drop(&mut self) {
        for (host, profile) in [
            ("login", "local"),
            ("login", "spread"),
            ("laptop", "reverse"),
            ("node1", "far"),
            ("node1", "plain"),
        ] {
            // The hosts' end takes all processes along; this lets them remove what they made outside.
            let _ = self.pcluster(host, &["stop", "--profile", profile]);
        }
        for profile in ["far", "plain"] {
            let _ = self.pcluster("laptop", &["disconnect", "--profile", profile]);
        }
        self.down();
    }
}

/// One line per route; a dash for what could not be measured.
fn table(found: &Found, size: &Size) -> String {
    let mut out = format!(
        "| | `pcluster map` of {} no-ops, tasks/s | … of one, whole command | `dview.apply_sync` to one engine | push of {MB} MB to one engine | MB/s |\n|---|--:|--:|--:|--:|--:|\n",
        thousands(size.tasks as f64)
    );
    let names = ROUTES.iter().map(|route| route.name).chain(COPIES.iter().map(|(name, _)| *name));
    for name in names {
        let value = |of: &'static str| found.get(&(name, of)).map(|values| median(values));
        let cell = |of: &'static str, shown: &dyn Fn(f64) -> String| value(of).map_or_else(|| "–".into(), shown);
        let ms = |seconds: f64| format!("{:.1} ms", seconds * 1e3);
        let _ = writeln!(
            out,
            "| {name} | {} | {} | {} | {} | {} |",
            cell("rate", &thousands),
            cell("single", &ms),
            cell("call", &ms),
            cell("push", &|seconds| format!("{seconds:.2} s")),
            cell("push", &|seconds| format!("{:.0}", f64::from(MB) / seconds)),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_each_way_and_a_dash_for_what_is_missing() {
        let name = ROUTES[2].name;
        let found = Found::from([
            ((name, "rate"), vec![30_000.0, 10_000.0, 20_000.0]),
            ((name, "single"), vec![0.0125]),
            ((COPIES[0].0, "push"), vec![0.5]),
        ]);
        let text = table(&found, &QUICK);
        assert!(text.contains(&format!("| {name} | 20,000 | 12.5 ms | – | – | – |")), "{text}");
        assert!(text.contains(&format!("| {} | – | – | – | 0.50 s | 200 |", COPIES[0].0)), "{text}");
        assert_eq!(text.lines().count(), 2 + ROUTES.len() + COPIES.len());
    }
}
