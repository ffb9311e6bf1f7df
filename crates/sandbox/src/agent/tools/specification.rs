//! How the tools are described to the model. The demo provider plans with these names and
//! parameters, so they are an interface.

use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::agent::model::ToolSpecification;

static ALL: LazyLock<Vec<ToolSpecification>> = LazyLock::new(build);

pub(super) fn all() -> &'static [ToolSpecification] {
    &ALL
}

fn tool(
    name: &'static str,
    description: &'static str,
    required: &[&str],
    properties: Value,
) -> ToolSpecification {
    let parameters = json!({
        "type": "object", "properties": properties, "required": required, "additionalProperties": false,
    });
    ToolSpecification {
        name,
        description,
        parameters,
    }
}

fn build() -> Vec<ToolSpecification> {
    let path = json!({"type": "string", "description": "Path relative to /workspace"});
    vec![
        tool(
            "run_command",
            "Runs a shell command in /workspace and answers with its exit code and output. Each call \
             is a fresh shell without a terminal and without input. Long output is cut in the middle.",
            &["command"],
            json!({
                "command": {"type": "string", "description": "What the shell runs"},
                "cwd": {"type": "string", "description": "Directory relative to /workspace"},
                "timeout_seconds": {"type": "integer", "minimum": 1, "maximum": 1800,
                    "description": "Time after which it is killed; 120 when absent"},
                "network": {"type": "string", "enum": ["none", "allowlist", "open"],
                    "description": "What it may reach: none, the names of the allowlist (package \
                        registries and the like), or every public address. Usually none unless asked for; \
                        a refused connection says which rule would allow it"},
            }),
        ),
        tool(
            "read_file",
            "Reads a text file, or some of its lines. A long answer is cut in the middle; read a long \
             file in parts.",
            &["path"],
            json!({
                "path": path,
                "first_line": {"type": "integer", "minimum": 1, "description": "Counted from 1"},
                "lines": {"type": "integer", "minimum": 1, "description": "How many lines"},
            }),
        ),
        tool(
            "write_file",
            "Writes a whole file; creates it and the directories above it when they are missing.",
            &["path", "content"],
            json!({"path": path, "content": {"type": "string"}}),
        ),
        tool(
            "patch_file",
            "Changes a file: either replaces the text `old`, which has to occur exactly once, by \
             `new`, or applies the hunks of a unified diff given as `patch`.",
            &["path"],
            json!({
                "path": path,
                "old": {"type": "string", "description": "Text as it stands in the file, with enough around it to be unique"},
                "new": {"type": "string", "description": "What takes its place"},
                "patch": {"type": "string", "description": "Hunks that begin with @@ -a,b +c,d @@"},
            }),
        ),
        tool(
            "list_files",
            "Lists a directory, or with `recursive` the tree beneath it.",
            &[],
            json!({"path": path, "recursive": {"type": "boolean"}}),
        ),
        tool(
            "search_files",
            "Finds lines that contain a text (no pattern), and answers with path:line: text.",
            &["query"],
            json!({
                "query": {"type": "string", "description": "The text"},
                "path": {"type": "string", "description": "Directory to search; everything when absent"},
                "ignore_case": {"type": "boolean"},
            }),
        ),
        tool(
            "remember",
            "Remembers something for later runs: facts about the user or the project that will matter again.",
            &["text"],
            json!({
                "text": {"type": "string"},
                "tags": {"type": "array", "items": {"type": "string"}, "description": "Words to find it by"},
            }),
        ),
        tool(
            "recall",
            "Looks in what earlier runs remembered.",
            &["query"],
            json!({
                "query": {"type": "string", "description": "Words, any of which have to match"},
                "tag": {"type": "string", "description": "Only what carries this tag"},
                "limit": {"type": "integer", "minimum": 1, "maximum": 10},
            }),
        ),
    ]
}
