/** First tasks. Each works with the demo provider (`docs/demo-provider.md`), and with a model. */

export interface Example {
  title: string;
  summary: string;
  prompt: string;
}

export const EXAMPLES: readonly Example[] = [
  {
    title: 'Make a failing test pass',
    summary: 'Writes a small Python module with a bug, runs its test, finds the bug and mends it.',
    prompt: `create calc.py: \`\`\`python
def add(a, b):
    return a - b
\`\`\`
create test_calc.py: \`\`\`python
import unittest
from calc import add


class AddTest(unittest.TestCase):
    def test_add(self):
        self.assertEqual(add(2, 3), 5)
\`\`\`
fix the failing test with python3 -m unittest`,
  },
  {
    title: 'Write a script and run it',
    summary: 'A file, a command, and what it printed.',
    prompt: 'create hello.sh: `echo "Hello from $(uname -n)"`\nrun: sh hello.sh',
  },
  {
    title: 'Change a file',
    summary: 'Writes a note, edits one word, and shows the result.',
    prompt: 'create notes/plan.md: Status: draft\nchange "draft" to "final" in notes/plan.md\nread notes/plan.md',
  },
  {
    title: 'Remember something',
    summary: 'Keeps it in the memory, where later tasks find it again.',
    prompt: 'remember: the release is on Thursday\nrecall release',
  },
];

export const DEMO_GRAMMAR: readonly { form: string; meaning: string }[] = [
  { form: 'run: <command>', meaning: 'Runs a command and shows its output' },
  { form: 'create <path>: <content>', meaning: 'Writes a file' },
  { form: 'change "<old>" to "<new>" in <path>', meaning: 'Edits a file' },
  { form: 'read <path>', meaning: 'Shows a file' },
  { form: 'fix the failing test [with <command>]', meaning: 'Runs the test and mends what it names' },
  { form: 'remember: <text>', meaning: 'Keeps something in the memory' },
  { form: 'recall <words>', meaning: 'Looks it up again' },
];
