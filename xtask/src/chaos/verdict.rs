//! What must hold after a campaign, from three witnesses: what each `pcluster map` printed, the records, and the ledger.
use super::{Chaos, expected};
use std::collections::BTreeMap;
use std::fs;

/// Input to the (engine, worker) pairs that executed it.
type Ledger = BTreeMap<u64, Vec<(u32, u32)>>;

/// One line, or all that is wrong.
pub fn of(chaos: &Chaos) -> Result<String, String> {
    let mut wrong = Vec::new();
    let ledger = read_ledger(chaos)?;
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
                .filter(|(engine, worker)| !chaos.gone.contains(engine) && !chaos.gone.contains(worker))
                .count();
            let too_often = of_living > 1 && !chaos.a_command_failed;
            // What was killed before it wrote into the ledger may count as an attempt.
            let too_many = attempts > executions.len() as u64 + chaos.gone.len() as u64;
            if !right || executions.is_empty() || attempts == 0 || too_often || too_many {
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
    let again = ledger.values().filter(|list| list.len() > 1).count();
    Ok(format!(
        "{} maps, {} tasks: each done exactly once, all values right; {executions} executions, {again} tasks were executed more than once, each because its engine or worker was killed",
        chaos.maps.len(),
        ledger.len()
    ))
}

fn read_ledger(chaos: &Chaos) -> Result<Ledger, String> {
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
