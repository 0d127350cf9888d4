//! The invariants after a campaign, from three sources: the output of each `pcluster map`, the records, and the ledger.
use super::Chaos;
use super::workload::{Map, Part, Workload, expected, expected_large, output_is_right};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// Faults that are printed.
const SHOWN_FAULTS: usize = 8;

/// Input to the (engine, worker) pairs that executed it.
type Ledger = BTreeMap<u64, Vec<(u32, u32)>>;
/// When the first task of a map started, and when its last one completed.
type Span = (Option<String>, Option<String>);

/// One line, or all that is wrong.
pub fn of(chaos: &Chaos) -> Result<String, String> {
    let mut wrong = Vec::new();
    let ledger = read_ledger(chaos)?;
    let given_up = given_up(chaos);
    let listed = chaos.pcluster(&["results", "--jsonl"])?;
    let mut refused = 0;
    for map in &chaos.maps {
        if map.workload == Workload::Client {
            of_client(chaos, map, &mut wrong);
            continue;
        }
        // Rejected without effect, because no controller was running: valid, too.
        let known = |part: &Part| !numbers_of(&listed, &part.name).is_empty();
        let executed = |part: &Part| (part.first..part.first + part.count).any(|n| ledger.contains_key(&n));
        let unreachable = matches!(map.code, Some(Some(3 | 4)));
        let (taken, untaken): (Vec<Part>, Vec<Part>) = map.parts().into_iter().partition(|part| known(part) || executed(part));
        let is_refused = unreachable && !untaken.is_empty();
        if is_refused {
            refused += 1;
        } else if map.code != Some(Some(0)) || !output_is_right(map, &chaos.home) {
            let stderr = fs::read_to_string(chaos.home.join(format!("{}.err", map.name))).unwrap_or_default();
            wrong.push(format!(
                "{} ({:?}, {} tasks): ended with {:?}, and its output is {}right: {stderr}",
                map.name,
                map.workload,
                map.count,
                map.code,
                if output_is_right(map, &chaos.home) { "" } else { "not " }
            ));
        }
        let mut ends = Vec::new();
        let expected_parts = if is_refused { taken } else { map.parts() };
        for part in expected_parts {
            ends.extend(of_part(chaos, map, &part, &listed, (&ledger, &given_up), &mut wrong)?);
        }
        if let [(_, Some(completed)), (Some(started), _)] = &ends[..]
            && started < completed
        {
            wrong.push(format!(
                "{}: began at {started}, before what it waits for was complete ({completed})",
                map.name
            ));
        }
    }
    if refused > 0 {
        println!("    {refused} maps were submitted while neither a controller nor its supervisor ran, and reported that");
    }
    if refused * 2 > chaos.maps.len() {
        wrong.push(format!("{refused} of {} maps found no controller", chaos.maps.len()));
    }
    if !wrong.is_empty() {
        let more = wrong.len().saturating_sub(SHOWN_FAULTS);
        wrong.truncate(SHOWN_FAULTS);
        if more > 0 {
            wrong.push(format!("(and {more} more)"));
        }
        return Err(wrong.join("\n"));
    }
    let executions: usize = ledger.values().map(Vec::len).sum();
    let again = ledger.values().filter(|list| list.len() > 1);
    let killed = |(engine, worker): &(u32, u32)| chaos.gone.contains(engine) || chaos.gone.contains(worker);
    let (again, late) = again.fold((0, 0), |(again, late), list| {
        let living = list.iter().filter(|pair| !killed(pair)).count();
        (again + 1, late + usize::from(living > 1))
    });
    Ok(format!(
        "{} maps, {} tasks: each done exactly once, all values right; {executions} executions, {again} tasks were executed more than once, \
         each because its engine or worker was killed or, {late} of them, because its engine's lease had run out ({} engines lost one, and came back)",
        chaos.maps.len(),
        ledger.len(),
        given_up.difference(&chaos.gone).count(),
    ))
}

/// Checks the records of one map against the ledger.
fn of_part(
    chaos: &Chaos,
    map: &Map,
    part: &Part,
    listed: &str,
    (ledger, given_up): (&Ledger, &BTreeSet<u32>),
    wrong: &mut Vec<String>,
) -> Result<Option<Span>, String> {
    let [number_of_map] = numbers_of(listed, &part.name)[..] else {
        wrong.push(format!("{}: not exactly one map of this name is recorded", part.name));
        return Ok(None);
    };
    let tasks = chaos.pcluster(&["results", &number_of_map.to_string(), "--jsonl"])?;
    let mut indices: Vec<u64> = tasks.lines().filter_map(|line| number(line, "index")).collect();
    indices.sort_unstable();
    if indices != (0..part.count).collect::<Vec<_>>() {
        wrong.push(format!("{}: {} of {} tasks are recorded", part.name, indices.len(), part.count));
    }
    let is_living = |pid: &u32| !chaos.gone.contains(pid) && !given_up.contains(pid);
    for line in tasks.lines() {
        let input = part.first + number(line, "index").unwrap_or_default();
        let executions = ledger.get(&input).map_or(&[][..], |list| list);
        let attempts = number(line, "attempts").unwrap_or_default();
        let of_living = executions
            .iter()
            .filter(|(engine, worker)| is_living(engine) && is_living(worker))
            .count();
        // The recorded output is that of one execution.
        let reported = executions
            .iter()
            .any(|(engine, worker)| line.contains(&format!("\"stdout\":\"{engine} {worker}\\n\"")));
        // An execution that was killed before it wrote into the ledger may count as an attempt.
        let too_many = attempts > executions.len() as u64 + (chaos.gone.len() + given_up.len()) as u64;
        let right = has_right_value(map.workload, input, line) && (reported || map.workload == Workload::Command);
        if !right || attempts == 0 || of_living > 1 || too_many {
            let line: String = line.chars().take(1000).collect();
            wrong.push(format!("{}: executed by {executions:?} (engine, worker): {line}", part.name));
        }
    }
    let started = tasks.lines().filter_map(|line| text(line, "started")).min();
    let completed = tasks.lines().filter_map(|line| text(line, "completed")).max();
    Ok(Some((started.map(String::from), completed.map(String::from))))
}

fn has_right_value(workload: Workload, input: u64, line: &str) -> bool {
    let value = match workload {
        Workload::Command => line.contains("\"exit_code\":0,"),
        Workload::Large => line.contains(&format!("\"value\":\"{}\"", expected_large(input))),
        _ => number(line, "value") == Some(expected(input)),
    };
    value && line.contains("\"state\":\"ok\"")
}

/// What an ipyparallel client has reported of its requests.
fn of_client(chaos: &Chaos, map: &Map, wrong: &mut Vec<String>) {
    let read = |extension: &str| fs::read_to_string(chaos.home.join(format!("{}.{extension}", map.name))).unwrap_or_default();
    let (out, stderr) = (read("out"), read("err"));
    let report = out.lines().find(|line| line.starts_with('{')).unwrap_or_default();
    let nothing = |name: &str| report.contains(&format!("\"{name}\": []"));
    let complete = ["wrong", "accepted_without_reply", "reply_on_record_not_given"]
        .into_iter()
        .all(nothing);
    // Its only way to the controller was lost when that had to take other ports (docs/explanation/promises.md).
    let moved = report.contains("\"ports_changed\": true");
    // IPython makes a profile on the disk that was full.
    let had_no_room = stderr.contains("No space left on device");
    if had_no_room && map.code != Some(Some(0)) {
        println!("    {}: an ipyparallel client found the disk full", map.name);
    } else if map.code != Some(Some(0)) || !(complete || moved) {
        let stderr: String = stderr.chars().rev().take(2000).collect::<Vec<_>>().into_iter().rev().collect();
        wrong.push(format!(
            "{}: an ipyparallel client ended with {:?} and reports {report:?}: {stderr}",
            map.name, map.code
        ));
    } else {
        println!("    {}: {report}", map.name);
    }
}

/// The numbers of the maps of this name.
fn numbers_of(listed: &str, name: &str) -> Vec<u64> {
    let name = format!("\"name\":\"{name}\"");
    let of_name = listed.lines().filter(|line| line.contains(&name));
    of_name.filter_map(|line| number(line, "map")).collect()
}

/// The text of this name in one line of JSON, if it has no escapes.
fn text<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, after) = line.split_once(&format!("\"{name}\":\""))?;
    after.split('"').next()
}

/// Engines that the controller has given up for their silence, according to its log; where lines of that were lost on a full disk,
/// also those that were stopped for long.
fn given_up(chaos: &Chaos) -> BTreeSet<u32> {
    let path = chaos.home.join("ipython/profile_default/log/controller.log");
    let log = fs::read(path).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let silent = log.lines().filter(|line| line.contains("engine gone") && line.contains("lease"));
    let logged = silent.filter_map(|line| line.split_once(" pid=")?.1.split(' ').next()?.parse().ok());
    let is_incomplete = log.contains("lines of the log were dropped");
    logged
        .chain(is_incomplete.then_some(&chaos.stopped_long).into_iter().flatten().copied())
        .collect()
}

pub fn read_ledger(chaos: &Chaos) -> Result<Ledger, String> {
    let text = fs::read_to_string(chaos.home.join("ledger")).map_err(|e| format!("there is no ledger: {e}"))?;
    let mut ledger = Ledger::new();
    for line in text.lines() {
        let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        let [input, engine, worker] = numbers[..] else {
            return Err(format!("a line of the ledger cannot be read: {line:?}"));
        };
        ledger.entry(input).or_default().push((engine as u32, worker as u32));
    }
    Ok(ledger)
}

/// The number of this name in one line of JSON.
fn number(line: &str, name: &str) -> Option<u64> {
    let (_, after) = line.split_once(&format!("\"{name}\":"))?;
    let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
    after[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_are_found_in_a_line() {
        let line = r#"{"task":"1.2","index":2,"value":5,"attempts":1}"#;
        assert_eq!(
            (number(line, "index"), number(line, "attempts"), number(line, "run")),
            (Some(2), Some(1), None)
        );
        assert_eq!(number(line, "task"), None);
    }
}
