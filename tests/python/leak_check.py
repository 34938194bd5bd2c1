#!/usr/bin/python3
"""Runs pytest under AddressSanitizer's leak check and fails for memory that this project allocated and lost.

    leak_check.py PYTEST-ARGUMENTS...

Python itself leaves memory behind when it ends, so a leak counts when the allocation was made by the extension or the library:
when one of them stands in the stack before the interpreter does.
"""
import os
import re
import subprocess
import sys
import tempfile

OURS = re.compile(r"/(_core\.[^/ ]*\.so|libjalapeno\.so[^/ ]*)[+)]|/(bindings|runtime|driver|emulator|samples)/[^ ]+\.[ch]pp")
INTERPRETER = re.compile(r"/(python3[^/ ]*|libpython[^/ ]*)[+)]")


def ours(stack: list[str]) -> bool:
    for frame in stack:
        if OURS.search(frame):
            return True
        if INTERPRETER.search(frame):
            return False
    return False


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"PYTHONMALLOC": "malloc", "LSAN_OPTIONS": "exitcode=0:max_leaks=0:print_suppressions=0",
                            "ASAN_OPTIONS": f"detect_leaks=1:log_path={folder}/report:handle_segv=0:allocator_may_return_null=1"}
        done = subprocess.run([sys.executable, "-m", "pytest", *sys.argv[1:]], env=env)
        text = "".join(open(os.path.join(folder, f), errors="replace").read() for f in sorted(os.listdir(folder)))
    if done.returncode != 0:
        print(text[-4000:])
        return done.returncode
    wrong = re.search(r"ERROR: AddressSanitizer|runtime error:", text)
    if wrong:
        print(text[max(0, wrong.start() - 200):wrong.start() + 4000])
        return 1
    leaks = [b for b in re.split(r"\n\n", text) if re.match(r"\s*(Direct|Indirect) leak of", b.strip())]
    lost = [b for b in leaks if ours(b.splitlines()[1:])]
    print(f"leak check: {len(leaks)} stacks in all, {len(lost)} of this project")
    for b in lost[:5]:
        print(b)
    # A report there must be: without one the check did not run.
    return 1 if lost or (not leaks and "LeakSanitizer" not in text) else 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # this process is not what is checked
