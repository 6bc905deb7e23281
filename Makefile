.PHONY: run test bench soak fuzz lint audit sbom picture client tools

NPM_CI = npm ci --no-audit --no-fund

run: client                     ## Builds and starts the service on 127.0.0.1:4001.
	cargo run --release --locked

test: tools client              ## Installs what tests need and runs all of them.
	scripts/test

bench: tools                    ## Runs a bounded load beside a Node server and a minimal Rust one, and prints tables.
	scripts/bench

SOAK_SECONDS = 600

soak: tools                     ## Has users come, read and go for ten minutes, and looks whether anything stays.
	TIDINGS_TEST_CHURN_SECS=$(SOAK_SECONDS) cargo test --locked --test it users_who_come_and_go -- --nocapture

FUZZ_SECONDS = 60

fuzz:                           ## Looks for input that breaks a parser, a minute for each; needs nightly and cargo-fuzz.
	for target in push login receipt hint; do \
	    mkdir -p fuzz/corpus/$$target && cargo +nightly fuzz run $$target fuzz/corpus/$$target fuzz/seeds/$$target \
	        -- -max_total_time=$(FUZZ_SECONDS) || exit 1; \
	done

lint:                           ## What the gate checks besides the tests.
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings
	scripts/modules
	scripts/prepare --check

audit:                          ## Checks the locked dependencies: vulnerabilities, licences, sources. Needs the network.
	scripts/audit

sbom:                           ## Lists the locked dependencies in target/sbom/tidings.cdx.json (CycloneDX).
	scripts/sbom

picture: tools client           ## Makes the picture of the README, docs/images/inbox.png.
	cargo build --locked
	cd tests/node && $(NPM_CI) && node picture.mjs

tools:                          ## Installs the Debian packages that tests need, where they are missing.
	scripts/tools

client: client/dist/tidings.js  ## Builds the client, and puts it where the build of the service embeds it.

client/dist/tidings.js: client/node_modules/.package-lock.json client/build.mjs $(wildcard client/tsconfig*.json client/src/*.ts client/src/*/*.ts)
	if command -v npm >/dev/null; then cd client && npm run --silent build && touch dist/tidings.js; \
	else echo "npm is missing: the service is built without its client"; fi

client/node_modules/.package-lock.json: client/package-lock.json
	if command -v npm >/dev/null; then cd client && $(NPM_CI) && touch node_modules/.package-lock.json; fi
