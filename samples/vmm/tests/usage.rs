// SPDX-License-Identifier: GPL-2.0

//! What is wrong with the arguments, or with what they name, is told in one line.

use std::fs;
use std::process::{Command, Output};

fn vmm(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
    command.args(arguments).output().unwrap()
}

#[test]
fn failures_are_told_in_one_line() {
    let folder = env!("CARGO_TARGET_TMPDIR");
    let short = format!("{folder}/short");
    fs::write(&short, "MZ").unwrap();
    let text = format!("{folder}/text");
    fs::write(&text, "no kernel ".repeat(1000)).unwrap();
    for (arguments, status, told) in [
        (&[][..], 2, "--kernel"),
        (&["--fly"], 2, "--fly"),
        (&["--kernel", &text, "--mem", "1"], 2, "--mem"),
        (&["--kernel", &text, "--cpus", "many"], 2, "--cpus"),
        (&["--kernel", &text, "--mem", "9G"], 2, "--max-mem"),
        (&["--kernel", "/nonexistent"], 1, "cannot open /nonexistent"),
        (&["--kernel", folder], 1, folder),
        (&["--kernel", &short], 1, "not a Linux kernel"),
        (&["--kernel", &text], 1, "not a Linux kernel"),
    ] {
        let output = vmm(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
        assert!(said.starts_with("vmm: ") && said.contains(told), "{said}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn help_is_no_failure() {
    let output = vmm(&["--help"]);
    assert!(output.status.success() && output.stderr.is_empty());
    assert!(String::from_utf8(output.stdout)
        .unwrap()
        .contains("--max-mem"));
}
