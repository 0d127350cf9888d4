//! `cargo xtask docs`: the book of `docs/` as HTML in `target/book/`. Links and sessions are checked by the tests.
use crate::Places;
use crate::run::{captured, echo, program, status};
use std::path::PathBuf;

/// Without the parts of mdBook that serve and watch a book.
const INSTALL: [&str; 7] = [
    "install",
    "--locked",
    "--debug",
    "--no-default-features",
    "--features",
    "search",
    "mdbook",
];

pub fn run(places: &Places) -> Result<(), String> {
    let mdbook = mdbook(places)?;
    let words = [&*mdbook.to_string_lossy(), "build", "docs"].map(str::to_string);
    echo(&words.join(" "));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if !status(&mut program(&places.root, &words))?.success() {
        return Err("the book could not be built (see above)".into());
    }
    println!("\nthe book: {}", places.root.join("target/book/index.html").display());
    Ok(())
}

/// The one on the PATH, else the one under target/, which is built once.
fn mdbook(places: &Places) -> Result<PathBuf, String> {
    let own = places.target.join("tools/bin/mdbook");
    for mdbook in [PathBuf::from("mdbook"), own.clone()] {
        if captured(&mut program(&places.root, &[&mdbook.to_string_lossy(), "--version"])).is_ok() {
            return Ok(mdbook);
        }
    }
    let root = places.target.join("tools").to_string_lossy().into_owned();
    let mut words = vec!["cargo"];
    words.extend(INSTALL);
    words.extend(["--root", &root]);
    echo(&words.join(" "));
    match status(&mut program(&places.root, &words))?.success() {
        true => Ok(own),
        false => Err("mdbook could not be installed (see above)".into()),
    }
}
