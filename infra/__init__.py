"""Where jobs run: clusters and the tracking server. Imports anything but benchmarks and tests."""
