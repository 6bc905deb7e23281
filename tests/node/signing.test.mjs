// The signing code of the documentation, run in each of its languages: the service takes what it makes, and nothing beside.

import assert from "node:assert/strict";
import { execFile, spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { promisify } from "node:util";

import { Page } from "./page.mjs";
import { BINARY, PATIENCE_MS, Server } from "./server.mjs";

const AUDIENCE = 'Zeitung "Süd"';
const TOKEN = 'Zoë "日本" $HOME \\n 🎉';
const KEYS = { k1: randomBytes(32).toString("hex"), k2: 'ein "Schlüssel" aus Wörtern' };
// A compiler that starts cold beside other tests takes its time.
const RUN_MS = 8 * PATIENCE_MS;
// Arguments and output are not ASCII, which Java takes for something else where the locale does not say UTF-8.
const ENV = { ...process.env, LC_ALL: "C.UTF-8", GOFLAGS: "", GO111MODULE: "off" };

/** How to see that a runtime is there, the program around the block, which prints a line each, and how to run it. */
const LANGUAGES = {
  java: {
    there: ["java", "--version"],
    files: (block) => ({
      // The class that stands first is the one that is run.
      "Main.java": block.replace(
        "public class Login {",
        `class Main {
    public static void main(String[] args) throws Exception {
        var login = Login.of(args[0], Long.parseLong(args[1]), args[2], args[3], args[4]);
        System.setOut(new java.io.PrintStream(System.out, true, "UTF-8"));
        for (var name : new String[] {"tokenId", "exp", "kid", "sig"}) System.out.println(login.get(name));
    }
}

class Login {`,
      ),
    }),
    run: ["java", "-XX:TieredStopAtLevel=1", "Main.java"],
  },
  js: {
    there: ["node", "--version"],
    files: (block) => ({
      "login.mjs": block,
      "main.mjs": `import { login } from "./login.mjs";
const [token, exp, ...rest] = process.argv.slice(2);
const made = login(token, Number(exp), ...rest);
for (const name of ["tokenId", "exp", "kid", "sig"]) console.log(made[name]);`,
    }),
    run: ["node", "main.mjs"],
  },
  py: {
    there: ["python3", "--version"],
    files: (block) => ({
      "login.py": block,
      "main.py": `import sys
from login import login
token, exp, *rest = sys.argv[1:]
made = login(token, int(exp), *rest)
for name in ["tokenId", "exp", "kid", "sig"]:
    print(made[name])`,
    }),
    run: ["python3", "main.py"],
  },
  php: {
    there: ["php", "--version"],
    files: (block) => ({
      "login.php": block,
      "main.php": `<?php
require "login.php";
[, $token, $exp, $kid, $secret, $audience] = $argv;
$made = login($token, (int) $exp, $kid, $secret, $audience);
foreach (["tokenId", "exp", "kid", "sig"] as $name) echo $made[$name], "\\n";`,
    }),
    run: ["php", "main.php"],
  },
  ruby: {
    there: ["ruby", "--version"],
    files: (block) => ({
      "login.rb": block,
      "main.rb": `require_relative "login"
token, exp, *rest = ARGV
made = login(token, Integer(exp), *rest)
%i[tokenId exp kid sig].each { |name| puts made[name] }`,
    }),
    run: ["ruby", "main.rb"],
  },
  csharp: {
    there: ["sh", "-c", "command -v dotnet || command -v mcs && command -v mono"],
    files: (block) => ({
      "Login.cs": block,
      "Program.cs": `using System;

class Program
{
    static void Main(string[] args)
    {
        Console.OutputEncoding = new System.Text.UTF8Encoding(false);
        var made = Login.Of(args[0], long.Parse(args[1]), args[2], args[3], args[4]);
        Console.Write($"{made.TokenId}\\n{made.Exp}\\n{made.Kid}\\n{made.Sig}\\n");
    }
}`,
      "main.csproj": `<Project Sdk="Microsoft.NET.Sdk">
  <PropertyGroup>
    <OutputType>Exe</OutputType>
    <TargetFramework>net$(BundledNETCoreAppTargetFrameworkVersion)</TargetFramework>
  </PropertyGroup>
</Project>`,
      "run.sh": `command -v dotnet >/dev/null && exec dotnet run --project main.csproj -- "$@"
mcs -out:main.exe Login.cs Program.cs && exec mono main.exe "$@"`,
    }),
    run: ["sh", "run.sh"],
  },
  go: {
    there: ["go", "version"],
    files: (block) => ({
      "login.go": block,
      "main.go": `package main

import (
	"fmt"
	"os"
	"strconv"
)

func main() {
	exp, _ := strconv.ParseInt(os.Args[2], 10, 64)
	made := NewLogin(os.Args[1], exp, os.Args[3], os.Args[4], os.Args[5])
	fmt.Println(made.TokenID)
	fmt.Println(made.Exp)
	fmt.Println(made.Kid)
	fmt.Println(made.Sig)
}`,
    }),
    run: ["go", "run", "login.go", "main.go"],
  },
};

const page = await readFile(new URL("../../docs/guides/sign-logins.md", import.meta.url), "utf8");
const loginKeys = `--login-keys=${Object.entries(KEYS).map((pair) => pair.join("=")).join(",")}`;
const audience = `--audience=${AUDIENCE}`;
const server = await Server.start(loginKeys, audience);
const folder = await mkdtemp(join(tmpdir(), "tidings-signing-"));
after(async () => {
  await server.stop();
  await rm(folder, { recursive: true });
});

/** The one block of a language that makes signatures. */
function blockOf(language) {
  const blocks = page.split("```" + language + "\n").slice(1).map((rest) => rest.split("```\n")[0]);
  const [block, ...others] = blocks.filter((block) => block.includes("tidings.login.v1"));
  assert.ok(block && others.length === 0, `the page has one signing block in ${language}`);
  return block;
}

async function runIn(cwd, [command, ...args]) {
  const { stdout } = await promisify(execFile)(command, args, { cwd, env: ENV, timeout: RUN_MS });
  return stdout;
}

/** What `tidings sign` makes. */
async function signed(kid) {
  const args = ["sign", "--token", TOKEN, "--ttl", "1h", "--kid", kid, loginKeys, audience];
  return JSON.parse(await runIn(folder, [BINARY, ...args]));
}

function inbox(token, { exp, kid, sig }) {
  const headers = { authorization: `Tidings kid=${kid}, exp=${exp}, sig=${sig}` };
  return server.fetch(`/api/inbox/${encodeURIComponent(token)}`, { headers });
}

for (const [language, { there, files, run }] of Object.entries(LANGUAGES)) {
  test(`the service takes what the documented signing code in ${language} makes`, async (t) => {
    const block = blockOf(language);
    const [command, ...args] = there;
    if (spawnSync(command, args).status !== 0) return t.skip(`no ${command} here, or one that is too old`);
    const home = await mkdtemp(join(folder, `${language}-`));
    for (const [name, text] of Object.entries(files(block))) await writeFile(join(home, name), text);
    const login = async (token, exp, kid, audience) => {
      const out = await runIn(home, [...run, token, String(exp), kid, KEYS[kid], audience]);
      const [tokenId, madeExp, madeKid, sig] = out.split("\n");
      return { tokenId, exp: Number(madeExp), kid: madeKid, sig };
    };

    for (const kid of Object.keys(KEYS)) {
      const wanted = await signed(kid);
      const made = await login(TOKEN, wanted.exp, kid, AUDIENCE);
      assert.deepEqual(made, wanted);
      assert.equal((await inbox(TOKEN, made)).status, 200);
      assert.equal((await inbox(`${TOKEN}!`, made)).status, 401, "it is for one inbox");

      const page = new Page("4.8.4", server.url, { transports: ["websocket"] });
      t.after(() => page.close());
      assert.equal((await page.call("user_login", made)).ok, true);
    }
    const { exp } = await signed("k1");
    assert.equal((await inbox(TOKEN, await login(TOKEN, exp, "k1", "tidings"))).status, 401, "it is for one audience");
  });
}
