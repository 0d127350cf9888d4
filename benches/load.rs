//! Helper programs of `cargo xtask bench`: many lightweight engines, one connected client that times maps of one task, and
//! the two lower limits (a bare spawn loop, a bare Python worker on a pipe). Prints `name value` lines.
//!
//!     load latency CLIENT_FILE COUNT [MS] median and 99th percentile of a map of one no-op task, microseconds; MS after the previous one
//!     load task CLIENT_FILE COUNT         the same for one more task of an open map, whose worker has started; and the medians
//!                                         until it is recorded, started, ended, and its value is received
//!     load engines ENGINE_FILE COUNT      registers COUNT engines, then completes every task immediately until it is killed
//!     load schedule ENGINES NODES TASKS   the controller's decisions alone: a simulated cluster runs TASKS, of three kinds
//!     load spawn COUNT LANES              COUNT times `true NUMBER`, LANES at a time
//!     load pipe PYTHON COUNT LANES        COUNT calls of a no-op function in LANES Python processes
use nix::sys::resource::{Resource, UsageWho, getrlimit, setrlimit};
use pcluster::testing::model::*;
use pcluster::testing::wire::content::client::{INPUTS, InputsReply, InputsRequest};
use pcluster::testing::wire::{Session, content::engine::*};
use pcluster::testing::{ConnectionFile, Security, Socket, SocketKind, client::Client};
use serde::Serialize;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::runtime::Builder;

mod simulation;

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Outcomes = Result<(), Failure>;

fn main() -> Outcomes {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["latency", file, count, pause @ ..] => {
            let pause = pause.first().map_or(Ok(0), |pause| pause.parse())?;
            let work = latency(ConnectionFile::read(Path::new(file))?, count.parse()?, Duration::from_millis(pause));
            Builder::new_current_thread()
                .enable_all()
                .build()?
                .block_on(async { tokio::spawn(work).await? })
        }
        ["task", file, count] => {
            let work = task_latency(ConnectionFile::read(Path::new(file))?, count.parse()?);
            Builder::new_current_thread()
                .enable_all()
                .build()?
                .block_on(async { tokio::spawn(work).await? })
        }
        ["engines", file, count] => {
            let work = engines(ConnectionFile::read(Path::new(file))?, count.parse()?);
            Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(work)
        }
        ["schedule", engines, nodes, tasks] => {
            schedule(engines.parse()?, nodes.parse()?, tasks.parse()?);
            Ok(())
        }
        ["spawn", count, lanes] => spawn(count.parse()?, lanes.parse()?),
        ["pipe", python, count, lanes] => pipe(python, count.parse()?, lanes.parse()?),
        // `cargo bench` without arguments does nothing: the full comparison needs its own setup (xtask).
        _ => {
            println!("run `cargo xtask bench`");
            Ok(())
        }
    }
}

/// Half of the tasks need an engine, the others one processor and memory, and four processors.
fn schedule(engines: u32, nodes: u32, tasks: u32) {
    let each = (engines / nodes).max(1);
    let began = Instant::now();
    let mut cluster = simulation::Simulation::new(1, pcluster::testing::ControllerConfig::default());
    for _ in 0..nodes {
        let has = NodeFacts {
            cpus: each,
            mem_bytes: u64::from(each) << 30,
            ..NodeFacts::default()
        };
        cluster.add_node(has, each);
    }
    let options = |cpus: u32, mem_bytes: Option<u64>| MapOptions {
        resources: TaskResources {
            cpus,
            ..TaskResources::default()
        },
        mem_bytes,
        ..MapOptions::default()
    };
    let takes = (500_000, 2_000_000);
    cluster.submit(tasks - tasks / 4 * 2, options(1, None), takes);
    cluster.submit(tasks / 4, options(1, Some(1 << 30)), takes);
    cluster.submit(tasks / 4, options(4, None), takes);
    let submitted = began.elapsed();
    let began = Instant::now();
    let cpu = || {
        let time = |time: nix::sys::time::TimeVal| Duration::from_secs(time.tv_sec() as u64) + Duration::from_micros(time.tv_usec() as u64);
        nix::sys::resource::getrusage(UsageWho::RUSAGE_SELF)
            .map_or(Duration::ZERO, |usage| time(usage.user_time()) + time(usage.system_time()))
    };
    // The middle half: neither the first assignment nor the end.
    let (mut middle, mut spent) = (0u32, Duration::ZERO);
    while cluster.step() {
        if middle == 0 && cluster.ended == tasks / 4 {
            (middle, spent) = (1, cpu());
        } else if middle == 1 && cluster.ended == tasks / 4 * 3 {
            (middle, spent) = (tasks / 4 * 3 - tasks / 4, cpu() - spent);
        }
    }
    let us = spent.as_secs_f64() * 1e6 / f64::from(middle.max(1));
    println!("ended {}", cluster.ended);
    println!("submit_s {:.2}", submitted.as_secs_f64());
    println!("total_s {:.2}", began.elapsed().as_secs_f64());
    println!("task_us {us:.2}");
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find(|line| line.starts_with("VmHWM"));
    println!(
        "peak_mb {}",
        peak.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .unwrap_or_default()
            / 1024
    );
}

fn unix_now() -> UnixTime {
    UnixTime(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64())
}

// ---- latency

async fn latency(file: ConnectionFile, count: usize, pause: Duration) -> Outcomes {
    let client = Client::connect(&file, Duration::from_secs(10)).await?;
    let definition = noop();
    let mut times = Vec::with_capacity(count);
    // The first ones are a warm-up.
    for i in 0..count + count / 10 + 1 {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let began = Instant::now();
        let (_, mut watch) = client.run(definition.clone(), &["[1]".into()], Duration::from_secs(5)).await?;
        let mut got = 0;
        // Waits for the result, not for the completion of the map.
        while got == 0 {
            let Some(update) = watch.next().await? else { break };
            got = update.results.len();
        }
        if i > count / 10 {
            times.push(began.elapsed().as_secs_f64() * 1e6);
        }
    }
    print_times(&mut times);
    Ok(())
}

async fn task_latency(file: ConnectionFile, count: u32) -> Outcomes {
    let client = Client::connect(&file, Duration::from_secs(10)).await?;
    let map = client.begin(noop()).await?.map;
    let mut watch = client.watch(map, Duration::from_secs(5));
    let (mut times, mut parts) = (Vec::new(), [const { Vec::new() }; 4]);
    for first in 0..count + count / 10 + 1 {
        // A pause, as between the calls of a person or a program that does something with the value.
        tokio::time::sleep(Duration::from_millis(3)).await;
        let (began, began_at) = (Instant::now(), unix_now());
        let request = InputsRequest {
            map,
            first,
            last: first == count + count / 10,
            abandoned: None,
        };
        let sent = client.request::<_, InputsReply>(INPUTS, &request, vec!["[1]".into()]);
        let (sent, update) = tokio::join!(sent, watch.next());
        sent?;
        let mut rows = update?.map_or(Vec::new(), |update| update.results);
        while rows.is_empty() {
            let Some(update) = watch.next().await? else { break };
            rows = update.results;
        }
        let Some(row) = rows.first().filter(|_| first > count / 10) else {
            continue;
        };
        times.push(began.elapsed().as_secs_f64() * 1e6);
        let ends = [
            row.submitted,
            row.started.unwrap_or_default(),
            row.completed.unwrap_or_default(),
            unix_now(),
        ];
        let begins = [began_at, ends[0], ends[1], ends[2]];
        let taken = begins.iter().zip(ends).map(|(from, to)| to.since(*from) * 1e6);
        parts.iter_mut().zip(taken).for_each(|(part, taken)| part.push(taken));
    }
    print_times(&mut times);
    for (name, mut part) in ["recorded", "started", "ended", "received"].into_iter().zip(parts) {
        println!("{name}_us {:.1}", quantile(&mut part, 0.5));
    }
    Ok(())
}

fn noop() -> MapDefinition {
    MapDefinition {
        work: Work::Call {
            from: CallSource::File {
                name: "noop.py".into(),
                text: "def noop(x): return x\n".into(),
            },
            function: "noop".into(),
        },
        options: MapOptions::default(),
    }
}

fn print_times(times: &mut [f64]) {
    println!("median_us {:.1}\np99_us {:.1}", quantile(times, 0.5), quantile(times, 0.99));
}

fn quantile(times: &mut [f64], q: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get((times.len() as f64 * q) as usize).copied().unwrap_or(f64::NAN)
}

// ---- light engines

/// Maximum number of concurrent registrations.
const PARALLELISM: usize = 64;

async fn engines(file: ConnectionFile, count: usize) -> Outcomes {
    // One connection per engine; the default limit is often 1,024 open files.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let file = std::sync::Arc::new(file);
    let permits = std::sync::Arc::new(tokio::sync::Semaphore::new(PARALLELISM));
    let began = Instant::now();
    let mut joining = tokio::task::JoinSet::new();
    for number in 0..count {
        let (file, permits) = (file.clone(), permits.clone());
        joining.spawn(async move {
            let _turn = permits.acquire().await?;
            LightEngine::register(&file, number).await
        });
    }
    let mut serving = tokio::task::JoinSet::new();
    while let Some(joined) = joining.join_next().await {
        serving.spawn(joined??.serve());
    }
    println!("registered {count}\nseconds {:.4}", began.elapsed().as_secs_f64());
    std::io::stdout().flush()?;
    while serving.join_next().await.is_some() {}
    Ok(())
}

/// An engine without a worker: it registers, sends heartbeats, and completes every task as soon as it arrives.
struct LightEngine {
    socket: Socket,
    session: Session,
    heartbeat: Duration,
    sequence: u64,
}

impl LightEngine {
    async fn register(file: &ConnectionFile, number: usize) -> Result<LightEngine, Failure> {
        let keys = file.pcluster.as_ref().ok_or("not an engine file of pcluster")?;
        let port = keys.engine_port.ok_or("not an engine file: no engine_port")?;
        let uuid = format!("00000000-0000-4000-8000-{number:012}");
        let security = match &file.curve_serverkey {
            Some(key) => Security::Client { server_key: key.clone() },
            None => Security::Plain,
        };
        let socket = Socket::new(SocketKind::Dealer, Some(&uuid), &security)?.with_packing();
        socket.connect(&file.location, port).await?;
        let mut engine = LightEngine {
            session: Session::new(file.key.as_bytes(), uuid.clone(), "bench"),
            socket,
            heartbeat: Duration::from_secs(1),
            sequence: 0,
        };
        let register = Register {
            protocol: PROTOCOL_VERSION,
            facts: EngineFacts {
                uuid: EngineUuid::from(uuid.as_str()),
                host: "light".into(),
                pid: std::process::id(),
                version: pcluster::testing::model::VERSION.into(),
                python: "none".into(),
                capabilities: ["call", "command", "execute", EngineFacts::JOINED].map(String::from).to_vec(),
                job: String::new(),
                ends: None,
                node: Default::default(),
            },
            id: None,
            allocations: Vec::new(),
            requests: vec![],
            unavailable: None,
            returned: vec![],
            holds: Vec::new(),
        };
        engine.send(REGISTER, &register)?;
        loop {
            let message = engine.session.open(engine.socket.receive().await?)?;
            if message.msg_type() == REGISTERED {
                let registered: Registered = message.content()?;
                if registered.status != "ok" {
                    return Err(registered.evalue.into());
                }
                engine.heartbeat = Duration::from_millis(registered.heartbeat_interval_ms.max(10));
                return Ok(engine);
            }
        }
    }

    fn send<T: Serialize>(&mut self, msg_type: &str, content: &T) -> Outcomes {
        let message = self.session.message(&unix_now().to_iso(), msg_type, None, content);
        let frames = self.session.seal(&[bytes::Bytes::from_static(Channel::Native.frame())], &message);
        Ok(self.socket.send(frames)?)
    }

    async fn serve(mut self) -> Outcomes {
        let mut beat = tokio::time::interval(self.heartbeat);
        loop {
            tokio::select! {
                _ = beat.tick() => self.send(HEARTBEAT, &Heartbeat {})?,
                frames = self.socket.receive() => {
                    let message = self.session.open(frames?)?;
                    match message.msg_type() {
                        TASKS => self.run(&message.content::<Tasks>()?)?,
                        GIVE_BACK => self.send(RETURNED, &Returned::default())?,
                        SHUTDOWN => {
                            self.send(UNREGISTER, &Unregister { reason: "requested".into() })?;
                            self.socket.close().await;
                            return Ok(());
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    fn run(&mut self, tasks: &Tasks) -> Outcomes {
        let now = unix_now();
        let outcome = Outcome {
            value: Some(serde_json::value::RawValue::from_string("1".into())?),
            error: None,
            ..Outcome::failure(TaskState::Ok, "", "", now, now)
        };
        let results = tasks.tasks.iter().map(|task| TaskResult {
            map: tasks.map,
            index: task.index,
            run: task.run,
            outcome: outcome.clone(),
        });
        self.sequence += 1;
        let (sequence, results) = (self.sequence, results.collect());
        self.send(RESULTS, &Results { sequence, results })
    }
}

// ---- limits

/// Runs `lane(count / lanes)` on each of `lanes` threads, and prints the time.
fn in_lanes(count: usize, lanes: usize, lane: impl Fn(usize) -> Outcomes + Sync) -> Outcomes {
    let (share, began) = (count / lanes, Instant::now());
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..lanes).map(|_| scope.spawn(|| lane(share))).collect();
        let mut ended = running
            .into_iter()
            .map(|lane| lane.join().unwrap_or_else(|_| Err("a lane failed".into())));
        ended.try_for_each(|ended| ended)
    })?;
    println!("tasks {}\nseconds {:.4}", share * lanes, began.elapsed().as_secs_f64());
    Ok(())
}

/// The standard library spawns such a plain command with `posix_spawn`.
fn spawn(count: usize, lanes: usize) -> Outcomes {
    in_lanes(count, lanes, |share| {
        for i in 0..share {
            // With an argument, like the other contenders: then `true` sets its locale, which takes another 0.25 ms.
            if !Command::new("/bin/true").arg(i.to_string()).status()?.success() {
                return Err("true failed".into());
            }
        }
        Ok(())
    })
}

const WORKER: &str = "
import json, sys
def noop(x): return x
out = sys.stdout.write
for line in sys.stdin:
    out(json.dumps(noop(*json.loads(line))) + '\\n')
";

fn pipe(python: &str, count: usize, lanes: usize) -> Outcomes {
    in_lanes(count, lanes, |share| {
        let mut worker = Command::new(python);
        let worker = worker.args(["-S", "-c", WORKER]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut worker = worker.spawn()?;
        let (stdin, stdout) = (worker.stdin.take().ok_or("no pipe")?, worker.stdout.take().ok_or("no pipe")?);
        let sender = std::thread::spawn(move || -> Outcomes {
            let mut stdin = BufWriter::new(stdin);
            (0..share).try_for_each(|i| writeln!(stdin, "[{i}]"))?;
            Ok(stdin.flush()?)
        });
        let answers = BufReader::new(stdout).lines().count();
        sender.join().unwrap_or_else(|_| Err("the sender failed".into()))?;
        worker.wait()?;
        if answers == share {
            Ok(())
        } else {
            Err(format!("{answers} of {share} answers").into())
        }
    })
}
