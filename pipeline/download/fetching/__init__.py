"""HTTP client: fetches, retries, connections, proxies, address guard, robots rules and response decoding."""
