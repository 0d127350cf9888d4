use super::*;
use crate::profile::EXAMPLE_CONFIG;
use std::collections::BTreeMap;

fn error(text: &str) -> String {
    let e = Config::parse(text, &[]).unwrap_err().in_file(std::path::Path::new("pcluster.yaml"));
    let hint = e.hint().map(|h| format!("\nhint: {h}")).unwrap_or_default();
    format!("{e}{hint}")
}
fn settings(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
}
fn setting_error(key: &str, value: &str) -> String {
    let e = Config::parse("", &settings(&[(key, value)])).unwrap_err();
    let hint = e.hint().map(|h| format!("\nhint: {h}")).unwrap_or_default();
    format!("{e}{hint}")
}

/// The example with its settings uncommented.
fn uncommented() -> String {
    let mut text = String::new();
    for line in EXAMPLE_CONFIG.lines() {
        match line.trim_start().strip_prefix('#') {
            Some(rest) if rest.starts_with(' ') && !rest.starts_with("  ") || rest.is_empty() => {}
            Some(setting) if line.starts_with('#') && !setting.starts_with("     ") => text.push_str(&format!("{setting}\n")),
            _ => {}
        }
    }
    text
}

#[test]
fn the_example_changes_nothing() {
    assert_eq!(Config::parse(EXAMPLE_CONFIG, &[]).unwrap(), Config::default());
    assert_eq!(Config::parse("", &[]).unwrap(), Config::default());
}

#[test]
fn the_example_uncommented_has_every_key_at_its_default() {
    let example: Value = serde_yaml::from_str(&uncommented()).unwrap();
    let mut known = serde_yaml::to_value(Config::default()).unwrap();
    // One batch system stands for all.
    let Value::Mapping(launchers) = known.get_mut("launchers").unwrap() else {
        panic!()
    };
    for other in ["sge", "pbs", "lsf", "htcondor"] {
        assert_eq!(launchers.remove(other).unwrap(), launchers["slurm"]);
    }
    assert_eq!(example, known);
}

#[test]
fn a_file_changes_only_its_keys() {
    let config = Config::parse(
        "controller: {hwm: 3, durability: full}\nengine:\n  kind: ipengine\n  env: {A: b}\n",
        &[],
    )
    .unwrap();
    assert_eq!((config.controller.hwm, config.controller.durability), (3, Durability::Full));
    assert_eq!(config.engine.kind, EngineKind::Ipengine);
    assert_eq!(config.engine.env["A"], "b");
    assert_eq!(config.launcher, LauncherConfig::default());
}

#[test]
fn settings_override_the_file_and_later_ones_override_earlier_ones() {
    let given = settings(&[
        ("controller.hwm", "4"),
        ("controller.hwm", "5"),
        ("engine.env.X", "'1'"),
        ("engine.python", "/usr/bin/python3"),
    ]);
    let config = Config::parse("controller: {hwm: 3, curve: false}", &given).unwrap();
    assert_eq!(config.controller.hwm, 5);
    assert!(!config.controller.curve);
    assert_eq!(config.engine.env["X"], "1");
    assert_eq!(config.engine.python.as_deref(), Some("/usr/bin/python3"));
}

#[test]
fn an_unknown_key_is_shown_with_the_nearest_one() {
    insta::assert_snapshot!(error("controller:\n  curve: true\n  hartbeat_interval_ms: 5\n"), @r#"
    pcluster.yaml:3:3: controller: unknown key `hartbeat_interval_ms`
      3 |   hartbeat_interval_ms: 5
        |   ^
    hint: did you mean `heartbeat_interval_ms`?
    "#);
    insta::assert_snapshot!(error("controler: {}\n"), @r#"
    pcluster.yaml:1:1: unknown key `controler`
      1 | controler: {}
        | ^
    hint: did you mean `controller`?
    "#);
    insta::assert_snapshot!(error("engine:\n  quux: 1\n"), @r#"
    pcluster.yaml:2:3: engine: unknown key `quux`
      2 |   quux: 1
        |   ^
    hint: known keys: kind, python, ipengine, interrupt_timeout_ms, terminate_timeout_ms, grace_period_ms, env, cwd, resources
    "#);
}

#[test]
fn an_invalid_value_or_yaml_is_shown_with_its_position() {
    insta::assert_snapshot!(error("controller:\n  hwm: many\n"), @r#"
    pcluster.yaml:2:8: controller.hwm: invalid type: string "many", expected a whole number
      2 |   hwm: many
        |        ^
    "#);
    insta::assert_snapshot!(error("controller:\n  durability: ful\n"), @r#"
    pcluster.yaml:2:15: controller.durability: unknown value `ful`
      2 |   durability: ful
        |               ^
    hint: did you mean `full`?
    "#);
    insta::assert_snapshot!(error("controller:\n  hwm: [1\nengine: {}\n"), @r#"
    pcluster.yaml:2:8: controller.hwm: invalid type: sequence, expected a whole number
      2 |   hwm: [1
        |        ^
    "#);
    insta::assert_snapshot!(error("controller:\n\thwm: 1\n"), @r#"
    pcluster.yaml:2:1: found character that cannot start any token
      2 | 	hwm: 1
        | ^
    hint: indent YAML with spaces, not tabs, and quote values with special characters
    "#);
    insta::assert_snapshot!(error("- a list\n"), @r#"
    pcluster.yaml:1:1: invalid type: sequence, expected `key: value` lines
      1 | - a list
        | ^
    "#);
    insta::assert_snapshot!(error("controller: {hwm: 1}\ncontroller: {hwm: 2}\n"), @r#"
    pcluster.yaml:1:1: duplicate field `controller`
      1 | controller: {hwm: 1}
        | ^
    "#);
}

#[test]
fn invalid_values_are_rejected() {
    insta::assert_snapshot!(error("controller: {task_scheme: leastlod}\n"), @r#"
    pcluster.yaml:1:13: controller: unknown value `leastlod`
      1 | controller: {task_scheme: leastlod}
        |             ^
    hint: did you mean `leastload`?
    "#);
    insta::assert_snapshot!(error("controller:\n  heartbeat_interval_ms: 0\n"), @r#"
    pcluster.yaml:2:3: controller: invalid value: integer `0`, expected a whole number greater than 0
      2 |   heartbeat_interval_ms: 0
        |   ^
    "#);
    insta::assert_snapshot!(error("controller: {lease_ms: 500}\n"), @r#"controller.lease_ms (500) must be greater than controller.heartbeat_interval_ms (1000)"#);
    // Together they are fine.
    let given = settings(&[("controller.lease_ms", "500"), ("controller.heartbeat_interval_ms", "100")]);
    assert_eq!(Config::parse("", &given).unwrap().controller.lease_ms, 500);
}

/// Rows `| `key` | `default` | …` of the page.
#[test]
fn the_page_has_every_key_with_its_default_and_no_other() {
    let page = include_str!("../../../docs/reference/configuration.md");
    let mut described = BTreeMap::new();
    for line in page.lines() {
        let cells: Vec<&str> = line.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        if let ["", key, default, _, _, ""] = cells[..]
            && key.contains('.')
        {
            described.insert(key.to_string(), default.to_string());
        }
    }
    let Value::Mapping(sections) = serde_yaml::to_value(Config::default()).unwrap() else {
        panic!()
    };
    let mut known = BTreeMap::new();
    let one_line = |value: &Value| serde_yaml::to_string(value).unwrap().trim().to_string();
    for (section, keys) in &sections {
        for (key, default) in keys.as_mapping().unwrap() {
            let (section, key) = (section.as_str().unwrap(), key.as_str().unwrap());
            match (section, default) {
                ("launchers", Value::Mapping(keys)) => {
                    let system = if matches!(key, "mpi" | "ssh") { key } else { "<system>" };
                    let named = keys
                        .iter()
                        .map(|(k, v)| (format!("launchers.{system}.{}", k.as_str().unwrap()), one_line(v)));
                    known.extend(named);
                }
                _ => drop(known.insert(format!("{section}.{key}"), one_line(default))),
            }
        }
    }
    assert_eq!(described, known);
}

#[test]
fn an_invalid_setting_is_named() {
    insta::assert_snapshot!(setting_error("controller.hwn", "4"), @r#"
    --set controller.hwn=4: unknown key `hwn`
    hint: did you mean `hwm`?
    "#);
    insta::assert_snapshot!(setting_error("controller.hwm", "four"), @r#"--set controller.hwm=four: invalid type: string "four", expected a whole number"#);
    insta::assert_snapshot!(setting_error("controller.hwm", "[4"), @r#"--set controller.hwm=[4: did not find expected ',' or ']'"#);
    insta::assert_snapshot!(setting_error("hwm", "4"), @r#"
    --set hwm=4: unknown key `hwm`
    hint: `hwm` belongs under `controller:` (`controller.hwm`); is that line missing or commented out?
    "#);
    insta::assert_snapshot!(setting_error("", "4"), @r#"
    --set =4: unknown key ``
    hint: known keys: controller, engine, launcher, launchers, map, elastic
    "#);
}

#[test]
fn amounts_of_batch_systems_are_read_with_their_units() {
    let config = Config::parse(
        "launchers:\n  slurm: {queue: batch, walltime: 1:30:00, memory: 4G, cpus: 2}\n  sge: {walltime: 90, env: {A: b}}\n",
        &settings(&[("launchers.slurm.memory", "512M"), ("launchers.slurm.start", "srun")]),
    )
    .unwrap();
    let slurm = &config.launchers.slurm;
    assert_eq!(slurm.walltime.unwrap().seconds, 5400);
    assert_eq!(config.launchers.sge.walltime.unwrap().seconds, 5400);
    assert_eq!((slurm.memory.unwrap().mib(), slurm.cpus), (512, Some(2)));
    assert_eq!(slurm.start, resources::StartMode::Srun);
    insta::assert_snapshot!(error("launchers:\n  slurm:\n    walltime: 1:30\n"), @r#"
    pcluster.yaml:3:5: launchers.slurm: "1:30" is not a valid time limit: use 1:30:00 (hours:minutes:seconds), 90m, 36h or 2d; a bare number is minutes
      3 |     walltime: 1:30
        |     ^
    "#);
    insta::assert_snapshot!(error("launchers:\n  slurm:\n    partition: batch\n"), @r"
    pcluster.yaml:3:5: launchers.slurm: unknown key `partition`
      3 |     partition: batch
        |     ^
    hint: known keys: queue, account, qos, walltime, kill_wait_s, memory, cpus, gpus, nodes, constraint, parallel_environment, reservation, mail_user, mail_type, directives, modules, before, env, engines_per_job, start, template
    ");
}

#[test]
fn deeply_nested_input_is_rejected_at_once() {
    let deep = 100_000;
    for text in [
        "[".repeat(deep),
        format!("controller: {{ip: {}{}}}", "[".repeat(deep), "]".repeat(deep)),
        format!("engine: {{env: {}", "{a: ".repeat(deep)),
        format!("launchers:\n  ssh:\n    hosts:\n      {}", "- ".repeat(deep)),
        "? ".repeat(deep),
    ] {
        let error = Config::parse(&text, &[]).unwrap_err().to_string();
        assert!(
            error.contains("more than 100 levels") && error.len() < 200,
            "{}",
            &error[..200.min(error.len())]
        );
    }
    let setting = ("engine.env".to_string(), "[".repeat(deep));
    let error = Config::parse("", &[setting]).unwrap_err().to_string();
    assert!(error.contains("more than 100 levels") && error.len() < 300, "{}", &error[..200]);
    // A long line is shown as far as it matters.
    let error = Config::parse(&format!("controller: {{hwm: x, ip: \"{}\"}}", "y".repeat(deep)), &[]).unwrap_err();
    assert!(error.to_string().len() < 400);
}
