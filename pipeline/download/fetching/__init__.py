"""HTTP client: fetching, retries, connections, proxies, address guard, robots.txt rules and response decoding."""
