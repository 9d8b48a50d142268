"""HTTP client: fetching, retries, connections, proxies, address guard, robots rules and response decoding."""
