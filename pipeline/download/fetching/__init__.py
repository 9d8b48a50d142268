"""HTTP: connections, proxies, address guard, robots rules, and response decoding."""
