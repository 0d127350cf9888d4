//! What must hold after a campaign, from three witnesses: what each `pcluster map` printed, the records, and the ledger.
use super::{Chaos, expected};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// Input to the (engine, worker) pairs that executed it.
type Ledger = BTreeMap<u64, Vec<(u32, u32)>>;

/// One line, or all that is wrong.
pub fn of(chaos: &Chaos) -> Result<String, String> {
    let mut wrong = Vec::new();
    let ledger = read_ledger(chaos)?;
    let given_up = given_up(chaos);
    let excused = |pid: &u32| chaos.gone.contains(pid) || given_up.contains(pid);
    let listed = chaos.pcluster(&["results", "--jsonl"])?;
    let mut refused = 0;
    for map in &chaos.maps {
        let out = fs::read_to_string(chaos.home.join(format!("{}.out", map.name))).unwrap_or_default();
        let inputs = map.first..map.first + map.count;
        let values: String = inputs.clone().map(|n| format!("{}\n", expected(n))).collect();
        let name = format!("\"name\":\"{}\"", map.name);
        let numbers: Vec<u64> = listed
            .lines()
            .filter(|l| l.contains(&name))
            .filter_map(|l| number(l, "map"))
            .collect();
        // Nobody was there to take it, it said so, and nothing of it happened: an answer, too.
        let unheard = numbers.is_empty() && out.is_empty() && !inputs.clone().any(|n| ledger.contains_key(&n));
        if unheard && matches!(map.code, Some(Some(3 | 4))) {
            refused += 1;
            continue;
        }
        if map.code != Some(Some(0)) || out != values {
            let said = fs::read_to_string(chaos.home.join(format!("{}.err", map.name))).unwrap_or_default();
            let (got, count) = (out.lines().count(), map.count);
            wrong.push(format!(
                "{}: ended with {:?} and {got} of {count} values: {said}",
                map.name, map.code
            ));
        }
        let [number_of_map] = numbers[..] else {
            wrong.push(format!("{}: {} maps of this name are on record", map.name, numbers.len()));
            continue;
        };
        let tasks = chaos.pcluster(&["results", &number_of_map.to_string(), "--jsonl"])?;
        let mut indices: Vec<u64> = tasks.lines().filter_map(|line| number(line, "index")).collect();
        indices.sort_unstable();
        if indices != (0..map.count).collect::<Vec<_>>() {
            wrong.push(format!("{}: {} of {} tasks are on record", map.name, indices.len(), map.count));
        }
        for line in tasks.lines() {
            let input = map.first + number(line, "index").unwrap_or_default();
            let right = number(line, "value") == Some(expected(input)) && line.contains("\"state\":\"ok\"");
            let executions = ledger.get(&input).map_or(&[][..], |list| list);
            let attempts = number(line, "attempts").unwrap_or_default();
            let of_living = executions
                .iter()
                .filter(|(engine, worker)| !excused(engine) && !excused(worker))
                .count();
            // Whichever stood, its output is that of one execution.
            let told = executions
                .iter()
                .any(|(engine, worker)| line.contains(&format!("\"stdout\":\"{engine} {worker}\\n\"")));
            let too_often = of_living > 1;
            // What was killed before it wrote into the ledger may count as an attempt.
            let too_many = attempts > executions.len() as u64 + (chaos.gone.len() + given_up.len()) as u64;
            if !right || !told || attempts == 0 || too_often || too_many {
                wrong.push(format!("{}: executed by {executions:?} (engine, worker): {line}", map.name));
            }
        }
    }
    if refused > 0 {
        println!("    {refused} maps were submitted while neither a controller nor its supervisor lived, and told so");
    }
    if refused * 4 > chaos.maps.len() {
        wrong.push(format!("{refused} of {} maps found no controller", chaos.maps.len()));
    }
    if !wrong.is_empty() {
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

/// Engines that the controller has given up for their silence, by its own word.
fn given_up(chaos: &Chaos) -> BTreeSet<u32> {
    let path = chaos.home.join("ipython/profile_default/log/controller.log");
    let log = fs::read(path).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let silent = log.lines().filter(|line| line.contains("engine gone") && line.contains("lease"));
    silent
        .filter_map(|line| line.split_once(" pid=")?.1.split(' ').next()?.parse().ok())
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
