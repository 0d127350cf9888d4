use super::*;
use std::os::unix::fs::symlink;

/// A directory with these files.
fn project(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    directory
}

fn sent(directory: &tempfile::TempDir, file: &str, with: &[&str]) -> Result<BundleRef, String> {
    let path = directory.path().join(file);
    let with: Vec<PathBuf> = with.iter().map(|path| directory.path().join(path)).collect();
    let source = fs::read(&path).unwrap().into();
    bundle(path.to_str().unwrap(), source, &with).map_err(|error| error.render(false))
}

fn paths(bundle: &BundleRef) -> Vec<String> {
    let files = bundle.content.as_ref().unwrap().files().unwrap();
    files.into_iter().map(|file| file.path).collect()
}

#[test]
fn only_imported_modules_are_included() {
    let directory = project(&[
        (
            "jobs.py",
            "import helper, numpy, os.path\nfrom pkg.sub import deep\nfrom pkg import a, CONSTANT\ndef f():\n  from space import inner\n",
        ),
        ("helper.py", "import second\nimport jobs"),
        ("second.py", ""),
        ("other.py", ""),
        ("pkg/__init__.py", "from .setup import *\nfrom . import b"),
        ("pkg/setup.py", "from .. import helper"),
        ("pkg/a.py", "import pkg.late"),
        ("pkg/b.py", ""),
        ("pkg/late.py", ""),
        ("pkg/unused.py", ""),
        ("pkg/sub/__init__.py", ""),
        ("pkg/sub/deep.py", "from ..star import *"),
        ("pkg/star/__init__.py", ""),
        ("pkg/star/one.py", ""),
        ("space/inner.py", ""),
        ("space/unused.py", ""),
        ("compiled.cpython-311-x86_64-linux-gnu.so", ""),
        ("space/data.txt", ""),
    ]);
    let bundle = sent(&directory, "jobs.py", &[]).unwrap();
    assert_eq!(
        paths(&bundle),
        [
            "helper.py",
            "jobs.py",
            "pkg/__init__.py",
            "pkg/a.py",
            "pkg/b.py",
            "pkg/late.py",
            "pkg/setup.py",
            "pkg/star/__init__.py",
            "pkg/star/one.py",
            "pkg/sub/__init__.py",
            "pkg/sub/deep.py",
            "second.py",
            "space/inner.py"
        ]
    );
    assert_eq!(
        (bundle.origin.as_str(), bundle.moved.len()),
        (directory.path().to_str().unwrap(), 0)
    );
    fs::write(directory.path().join("pkg/b.py"), "x = 1").unwrap();
    assert_ne!(sent(&directory, "jobs.py", &[]).unwrap().hash, bundle.hash);
}

#[test]
fn compiled_modules_and_submodules_of_a_star_import_are_included() {
    let directory = project(&[
        ("jobs.py", "import fast\nfrom pkg import *"),
        ("fast.cpython-311-x86_64-linux-gnu.so", "x"),
        ("fast.abi3.so", "x"),
        ("fastest.so", "x"),
        ("pkg/__init__.py", "__all__ = ['a']"),
        ("pkg/a.py", ""),
    ]);
    let bundle = sent(&directory, "jobs.py", &[]).unwrap();
    assert_eq!(
        paths(&bundle),
        [
            "fast.abi3.so",
            "fast.cpython-311-x86_64-linux-gnu.so",
            "jobs.py",
            "pkg/__init__.py",
            "pkg/a.py"
        ]
    );
}

#[test]
fn a_module_in_a_package_is_imported_by_its_full_name() {
    let directory = project(&[
        ("top/__init__.py", ""),
        ("top/in/__init__.py", ""),
        ("top/in/jobs.py", "from . import x\nfrom ..y import z"),
        ("top/in/x.py", ""),
        ("top/y.py", ""),
    ]);
    let bundle = sent(&directory, "top/in/jobs.py", &[]).unwrap();
    assert_eq!(bundle.entry, "top/in/jobs.py");
    assert_eq!(
        paths(&bundle),
        ["top/__init__.py", "top/in/__init__.py", "top/in/jobs.py", "top/in/x.py", "top/y.py"]
    );
}

#[test]
fn a_script_never_shadows_a_standard_library_module() {
    let directory = project(&[
        ("random.py", "import random, statistics"),
        ("statistics.py", "import random"),
        ("a.b.py", ""),
    ]);
    let bundle = sent(&directory, "random.py", &[]).unwrap();
    // The other file is meant, as it would be by Python.
    assert_eq!(paths(&bundle), ["pcluster_random.py", "statistics.py"]);
    assert_eq!(
        bundle.moved["pcluster_random.py"],
        directory.path().join("random.py").to_str().unwrap()
    );
    assert_eq!(sent(&directory, "a.b.py", &[]).unwrap().entry, "pcluster_a_b.py");
}

#[test]
fn with_adds_files_and_directories() {
    let directory = project(&[
        ("src/jobs.py", ""),
        ("src/data/a.csv", "1"),
        ("src/data/__pycache__/a.pyc", ""),
        ("src/data/.git/config", ""),
        ("lib/tool/__init__.py", "import extra"),
        ("lib/table.txt", "2"),
        ("src/extra.py", ""),
    ]);
    symlink("a.csv", directory.path().join("src/data/link.csv")).unwrap();
    symlink(".", directory.path().join("src/data/loop")).unwrap();
    let bundle = sent(&directory, "src/jobs.py", &["src/data", "lib/tool", "lib/table.txt"]).unwrap();
    assert_eq!(
        paths(&bundle),
        [
            "data/a.csv",
            "data/link.csv",
            "extra.py",
            "jobs.py",
            "table.txt",
            "tool/__init__.py"
        ]
    );
    assert_eq!(bundle.with.len(), 3);
    assert_eq!(bundle.moved["tool"], directory.path().join("lib/tool").to_str().unwrap());
    assert_eq!(bundle.moved["table.txt"], directory.path().join("lib/table.txt").to_str().unwrap());
    // The same once more is no other bundle.
    let all = sent(&directory, "src/jobs.py", &["src/data", "src", "lib/tool", "lib/table.txt"]).unwrap();
    assert_eq!(all.hash, bundle.hash);
}

#[test]
fn files_that_cannot_be_sent_are_named_in_the_error() {
    let directory = project(&[("src/jobs.py", ""), ("src/a/x", ""), ("lib/a/x", ""), ("secret", "")]);
    let fails = |with: &[&str]| sent(&directory, "src/jobs.py", with).unwrap_err();
    assert!(fails(&["src/none"]).contains("no file or directory"), "{}", fails(&["src/none"]));
    assert!(fails(&["src/a", "lib/a"]).contains("would have the same path a/x"));
    symlink("../../secret", directory.path().join("src/a/out")).unwrap();
    assert!(fails(&["src/a"]).contains("points outside the directory"));
    fs::remove_file(directory.path().join("src/a/out")).unwrap();
    nix::unistd::mkfifo(&directory.path().join("src/a/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(fails(&["src/a"]).contains("neither a file nor a directory"));
    fs::remove_file(directory.path().join("src/a/pipe")).unwrap();
    let big = fs::File::create(directory.path().join("src/a/big.bin")).unwrap();
    big.set_len(MAX_BYTES + 1).unwrap();
    assert!(fails(&["src/a"]).contains("more than 256 MiB") && fails(&["src/a"]).contains("big.bin"));
}

/// Every import that Python's own parser finds in its standard library and tests, and no other.
#[test]
fn the_standard_library_is_read_as_python_reads_it() {
    const SCRIPT: &str = r#"
import ast, json, os, sys, sysconfig, warnings
warnings.simplefilter("ignore")
for directory, below, names in os.walk(sysconfig.get_paths()["stdlib"]):
    below[:] = [name for name in below if name not in ("site-packages", "dist-packages", "__pycache__")]
    for name in names:
        path = os.path.join(directory, name)
        if not name.endswith(".py"):
            continue
        try:
            tree = ast.parse(open(path, "rb").read(), path)
        except (SyntaxError, ValueError):
            continue
        found = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found += [[0, alias.name, []] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found.append([node.level, node.module or "", [alias.name for alias in node.names]])
        print(json.dumps([path, found]))
"#;
    let python = std::env::var("PCLUSTER_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let output = std::process::Command::new(&python).args(["-c", SCRIPT]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (mut files, mut statements, mut wrong) = (0, 0, Vec::new());
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let (path, expected): (String, Vec<(usize, String, Vec<String>)>) = serde_json::from_str(line).unwrap();
        let mut expected: Vec<Import> = expected
            .into_iter()
            .map(|(level, module, names)| Import { level, module, names })
            .collect();
        let mut found = imports(&fs::read(&path).unwrap());
        expected.sort();
        found.sort();
        (files, statements) = (files + 1, statements + expected.len());
        if found != expected {
            let missing = expected.iter().find(|import| !found.contains(import));
            let extra = found.iter().find(|import| !expected.contains(import));
            wrong.push(format!("{path}: missing {missing:?}, too much {extra:?}"));
        }
    }
    assert!(files > 100 && statements > 1000, "{files} files, {statements} imports");
    assert!(wrong.is_empty(), "{} of {files} files:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn too_many_files_are_rejected() {
    let directory = project(&[("jobs.py", "")]);
    fs::create_dir(directory.path().join("many")).unwrap();
    for i in 0..=MAX_FILES {
        fs::write(directory.path().join("many").join(i.to_string()), "").unwrap();
    }
    assert!(
        sent(&directory, "jobs.py", &["many"])
            .unwrap_err()
            .contains("more than 10000 files")
    );
}
