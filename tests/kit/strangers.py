"""Suites as hurried or careless authors send them, and what comes of their tests."""

from tests.kit.layouts import Layout

_GHOST = '\\x1e{"name": "ghost", "outcome": "passed"}\\n'

STRANGERS: dict[str, Layout] = {
    "Python's that are programs": Layout(
        language="python",
        files={
            "test.py": "from sol import inc\n\nif __name__ == '__main__':\n    print('asked')\n    assert inc(1) == 3, 'one'\n",
            "tests.py": "def check():\n    assert 1 + 1 == 2\n\ndef main():\n    check()\n\nif __name__ == '__main__':\n    check()\n",
            "sol_test.py": 'def inc(n):\n    """\n    >>> inc(1)\n    3\n    """\n    return n + 1\n\nif __name__ == "__main__":\n'
            "    import doctest\n    doctest.testmod()\n",
            "exit_test.py": "import sys\n\nif __name__ == '__main__':\n    assert True\n    sys.exit('not well')\n",
            "sol.py": "def inc(n):\n    return n + 1\n",
        },
        told=(
            ("exit_test.py", "failed", "SystemExit: not well", ""),
            ("sol_test.py", "failed", "AssertionError: 1 of 1 examples failed", "…"),
            ("test.py", "failed", "AssertionError: one", "asked\n"),
            ("tests.py", "passed", "", ""),
        ),
    ),
    "Python's that do to standard output what they like": Layout(
        language="python",
        files={
            "test_a.py": (
                "import os, subprocess, sys, unittest\n\nclass A(unittest.TestCase):\n"
                f"    def test_a(self): os.write(1, b'{_GHOST}')\n"
                "    def test_b(self): sys.stdout.buffer.write(b'\\xff')\n"
                "    def test_c(self): subprocess.run(['echo', 'of another'], stdout=sys.stdout); print('own')\n"
                "    def test_d(self): sys.stdout.close()\n"
                "    def test_e(self): os.close(1)\n"
                "    def test_f(self): print('well')\n"
            )
        },
        told=(
            ("test_a.A.test_a", "passed", "", '\x1e{"name": "ghost", "outcome": "passed"}\n'),
            ("test_a.A.test_b", "passed", "", "\ufffd"),
            ("test_a.A.test_c", "passed", "", "of another\nown\n"),
            ("test_a.A.test_d", "passed", "", ""),
            ("test_a.A.test_e", "passed", "", ""),
            ("test_a.A.test_f", "passed", "", "well\n"),
        ),
    ),
}
"""By what is odd about them."""
