"""The contract of `protocol.Engine` as tests: what every engine must do.

Each test runs once per engine. It only makes calls of the protocol, and moves the clock instead of
waiting. To add an engine, write a fixture for it in `conftest.py` and list it in `ENGINES`.
`planted_engines.py` shows that the tests find bugs.
"""
