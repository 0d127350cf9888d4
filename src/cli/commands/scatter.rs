//! `pcluster scatter`: a list, cut evenly, into the engines' namespaces.
use super::apply::on_engines::{self, EngineOptions};
use crate::cli::inputs::function::is_name;
use crate::cli::{CommandError, Context, Exit};
use crate::model::definition::Work;
use serde_json::value::RawValue;
use std::io::Read;

/// Partition a list across the engines
///
/// Sets NAME on each engine to its part of the list. The lengths of the parts differ by at most one.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  pcluster scatter numbers '[1, 2, 3, 4, 5, 6, 7, 8]'\n  pcluster exec 'total = sum(numbers)'\n  pcluster pull total"
)]
pub(crate) struct Args {
    /// Set this variable on the engines
    name: String,
    /// Partition this JSON list, or - for stdin
    #[arg(value_name = "JSON")]
    list: String,
    #[command(flatten)]
    engines: EngineOptions,
}

pub(crate) fn run(args: Args, context: &Context) -> Result<Exit, CommandError> {
    if !is_name(&args.name) {
        return Err(CommandError::usage(format!("{:?} is not a valid Python name", args.name)));
    }
    let mut text = args.list;
    if text == "-" {
        text.clear();
        let read = std::io::stdin().read_to_string(&mut text);
        read.map_err(|e| CommandError::usage(format!("cannot read the list from stdin: {e}")))?;
    }
    let list: Vec<Box<RawValue>> = serde_json::from_str(&text).map_err(|e| {
        CommandError::usage(format!("the value to scatter is not a JSON list: {e}"))
            .hint("for example: pcluster scatter numbers '[1, 2, 3, 4]'")
    })?;
    let name = args.name;
    let inputs = |engines: &[crate::model::EngineId]| parts(&list, engines.len()).iter().map(|part| object(&name, part)).collect();
    let Some(answers) = on_engines::run(context, &args.engines, Work::Push, inputs)? else {
        return Ok(Exit::Interrupted);
    };
    answers.require_success(context, "scatter")?;
    context.note_verbose(format!("{} items on {} engines", list.len(), answers.rows.len()));
    Ok(Exit::Fine)
}

/// Consecutive parts whose lengths differ by at most one, the longer ones first.
fn parts<T>(list: &[T], count: usize) -> Vec<&[T]> {
    let (mut parts, mut rest) = (Vec::with_capacity(count), list);
    for left in (1..=count).rev() {
        let (part, behind) = rest.split_at(rest.len().div_ceil(left));
        parts.push(part);
        rest = behind;
    }
    parts
}

fn object(name: &str, part: &[Box<RawValue>]) -> String {
    let items: Vec<String> = part.iter().map(|raw| raw.get().replace(['\n', '\r'], " ")).collect();
    format!("{{{}:[{}]}}", serde_json::Value::from(name), items.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_are_even_and_in_order(length in 0usize..100, count in 1usize..20) {
            let list: Vec<usize> = (0..length).collect();
            let parts = parts(&list, count);
            prop_assert_eq!(parts.len(), count);
            prop_assert_eq!(parts.concat(), list.clone());
            prop_assert!(parts.windows(2).all(|w| w[0].len() == w[1].len() || w[0].len() == w[1].len() + 1));
            prop_assert!(parts[0].len() - parts[count - 1].len() <= 1);
        }
    }

    #[test]
    fn items_keep_their_exact_text() {
        let list: Vec<Box<RawValue>> = serde_json::from_str("[1.0, {\"a\":\n2}]").unwrap();
        assert_eq!(object("n", &list), "{\"n\":[1.0,{\"a\": 2}]}");
    }
}
