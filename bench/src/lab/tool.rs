//! Running the commands the lab is made with.

use std::io::{self, Write};
use std::process::{Command, Output, Stdio};

use super::LabError;

/// Runs a command to its end and returns what it wrote to stdout.
///
/// # Errors
/// When it is not installed, or ends with another status than 0; the error holds what it wrote to stderr.
pub fn run(tool: &str, arguments: &[&str]) -> Result<String, LabError> {
    run_with_input(tool, arguments, "")
}

/// Like [`run`], with text on stdin.
///
/// # Errors
/// As [`run`].
pub fn run_with_input(tool: &str, arguments: &[&str], input: &str) -> Result<String, LabError> {
    let command = || format!("{tool} {}", arguments.join(" "));
    let output = spawn(tool, arguments, input).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => LabError::MissingTool { tool: tool.to_owned(), package: package(tool) },
        _ => LabError::Tool { command: command(), output: error.to_string() },
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let output = if text.trim().is_empty() { output.status.to_string() } else { text.trim().to_owned() };
    Err(LabError::Tool { command: command(), output })
}

fn spawn(tool: &str, arguments: &[&str], input: &str) -> io::Result<Output> {
    let mut child = Command::new(tool)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that does not read its input says why by its exit status.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output()
}

fn package(tool: &str) -> &'static str {
    if tool.starts_with("iptables") { "iptables" } else { "iproute2" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_carry_the_command_and_its_words() {
        assert_eq!(run_with_input("cat", &[], "text").expect("cat"), "text");
        let error = run("sh", &["-c", "echo broken >&2; exit 3"]).expect_err("fails").to_string();
        assert!(error.contains("sh -c") && error.ends_with("broken"), "{error}");
        let error = run("iptables-none-such", &[]).expect_err("fails").to_string();
        assert!(error.contains("apt-get install iptables"), "{error}");
    }
}
