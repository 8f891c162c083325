package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

type options struct {
	mutants               int
	budget, slowest, each time.Duration
	skip, judged          string
	rerun                 bool
}

// verdict is what became of a mutant.
type verdict string

const (
	killed    verdict = "killed"
	survived  verdict = "survived"
	unreached verdict = "not reached" // by any test that was run: it survives, too
	unjudged  verdict = "not judged"  // there was no time
)

// target is a package with the switches built in.
type target struct {
	options
	pkg, dir, work string
	sites          []site
	sources        map[string][]byte
	binary         string
	reach          map[int][]test // the tests that reach a mutant, the fast ones first
}

type test struct {
	name string
	took time.Duration
}

// run mutates packages. An argument may name files: internal/raftnode:core*.go.
func run(ctx context.Context, o options, packages []string) error {
	known, err := readJudged(o.judged)
	if err != nil {
		return err
	}
	var all counts
	var fresh []string
	for _, arg := range packages {
		pkg, files, _ := strings.Cut(arg, ":")
		t := &target{options: o, pkg: pkg, dir: filepath.FromSlash(pkg)}
		c, survivors, err := t.run(ctx, files, known)
		if err != nil {
			return fmt.Errorf("%s: %w", arg, err)
		}
		all.add(c)
		fresh = append(fresh, survivors...)
	}
	fmt.Printf("\n%d mutants: %d killed, %d survived and were judged before, %d survived unjudged, %d without time\n",
		all.total, all.killed, all.known, len(fresh), all.unjudged)
	if err := record(all, len(fresh)); err != nil {
		return err
	}
	if len(fresh) > 0 {
		return fmt.Errorf("%d survivors are not in %s: add a test that notices them, or a line with the reason why none can:\n%s",
			len(fresh), o.judged, strings.Join(fresh, "\n"))
	}
	return nil
}

type counts struct{ total, killed, known, unjudged int }

func (c *counts) add(d counts) {
	c.total += d.total
	c.killed += d.killed
	c.known += d.known
	c.unjudged += d.unjudged
}

func (t *target) run(ctx context.Context, files string, known map[string]string) (c counts, fresh []string, err error) {
	if t.work, err = os.MkdirTemp("", "mutation-"); err != nil {
		return c, nil, err
	}
	defer os.RemoveAll(t.work)
	var patterns []string
	if files != "" {
		patterns = strings.Split(files, ",")
	}
	sources, sites, err := sitesOf(t.dir, patterns)
	if err != nil {
		return c, nil, err
	}
	t.sources = sources
	t.sites = choose(sites, t.mutants)
	if t.rerun {
		t.sites = choose(slices.DeleteFunc(sites, func(s site) bool { return known[s.name] == "" }), 0)
	}
	fmt.Printf("%s: %d places, %d chosen\n", t.pkg, len(sites), len(t.sites))
	if err := t.build(ctx); err != nil {
		return c, nil, err
	}
	if err := t.profile(ctx); err != nil {
		return c, nil, err
	}
	begin := time.Now()
	for i, s := range t.sites {
		v, by := unjudged, ""
		if time.Since(begin) < t.budget {
			v, by = t.try(ctx, s)
		}
		if ctx.Err() != nil {
			return c, nil, ctx.Err()
		}
		c.total++
		switch reason, judged := known[s.name]; {
		case v == killed:
			c.killed++
			if judged {
				fmt.Printf("KILLED, although listed as a survivor (%s): %s\n", reason, s.name)
			}
		case v == unjudged:
			c.unjudged++
		case judged:
			c.known++
		default:
			fresh = append(fresh, s.name)
		}
		fmt.Printf("%d/%d line %d %s%s: %s\n", i+1, len(t.sites), s.line, v, by, s.name)
	}
	return c, fresh, nil
}

// build compiles the tests with all switches, leaving out what does not compile.
func (t *target) build(ctx context.Context) error {
	abs, err := filepath.Abs(t.dir)
	if err != nil {
		return err
	}
	t.binary = filepath.Join(t.work, "test")
	for range 20 {
		overlay := map[string]string{}
		put := func(name string, content []byte) error {
			temp := filepath.Join(t.work, filepath.Base(name))
			overlay[filepath.Join(abs, filepath.Base(name))] = temp
			return os.WriteFile(temp, content, 0o600)
		}
		var pkg string
		for name, source := range t.sources {
			pkg = packageOf(source)
			if err := put(name, instrument(name, source, t.sites)); err != nil {
				return err
			}
		}
		if err := put("mutation_switches.go", switches(pkg)); err != nil {
			return err
		}
		text, err := json.Marshal(map[string]any{"Replace": overlay})
		if err != nil {
			return err
		}
		config := filepath.Join(t.work, "overlay.json")
		if err := os.WriteFile(config, text, 0o600); err != nil {
			return err
		}
		// Without -gcflags=-e the compiler stops after ten errors; vet would stop at the first.
		out, err := exec.CommandContext(ctx, "go", "test", "-c", "-vet=off", "-gcflags=-e", "-overlay", config, "-o", t.binary, "./"+t.dir).CombinedOutput()
		if err == nil {
			return nil
		}
		if n := t.drop(out); n == 0 {
			return fmt.Errorf("build: %w\n%s", err, out)
		}
	}
	return errors.New("build: mutants that do not compile were left out twenty times, and there still are some")
}

func packageOf(source []byte) string {
	return string(regexp.MustCompile(`(?m)^package (\w+)`).FindSubmatch(source)[1])
}

var compilerError = regexp.MustCompile(`(?m)^(\S+\.go):(\d+):\d+: `)

// drop leaves out the sites at lines that the compiler complains about.
func (t *target) drop(out []byte) (dropped int) {
	for _, m := range compilerError.FindAllSubmatch(out, -1) {
		line, _ := strconv.Atoi(string(m[2]))
		before := len(t.sites)
		t.sites = slices.DeleteFunc(t.sites, func(s site) bool {
			// A site may have several lines.
			last := s.line + bytes.Count(t.sources[s.file][s.from:s.to], []byte("\n"))
			return filepath.Base(s.file) == filepath.Base(string(m[1])) && s.line <= line && line <= last
		})
		dropped += before - len(t.sites)
	}
	return dropped
}

// profile runs each test once without a mutant.
func (t *target) profile(ctx context.Context) error {
	out, err := t.command(ctx, nil, "-test.list", ".").Output()
	if err != nil {
		return fmt.Errorf("list the tests: %w", err)
	}
	t.reach = make(map[int][]test)
	skip, err := regexp.Compile(t.skip)
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(out)) {
		if !strings.HasPrefix(name, "Test") && !strings.HasPrefix(name, "Fuzz") || t.skip != "" && skip.MatchString(name) {
			continue
		}
		notes := filepath.Join(t.work, "reached-"+name)
		begin := time.Now()
		limit, cancel := context.WithTimeout(ctx, t.slowest)
		out, err := t.command(limit, []string{"KVD_MUTANTS_REACHED=" + notes}, "-test.run", "^"+name+"$").CombinedOutput()
		slow := limit.Err() != nil
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if slow {
			fmt.Printf("left out: %s takes more than %v\n", name, t.slowest)
			continue
		}
		if err != nil {
			return fmt.Errorf("%s fails without a mutant: %w\n%s", name, err, out)
		}
		took := time.Since(begin)
		text, err := os.ReadFile(notes)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for line := range strings.Lines(string(text)) {
			if id, err := strconv.Atoi(strings.TrimSpace(line)); err == nil {
				t.reach[id] = append(t.reach[id], test{name, took})
			}
		}
	}
	for id := range maps.Keys(t.reach) {
		slices.SortStableFunc(t.reach[id], func(a, b test) int { return int(a.took - b.took) })
	}
	return nil
}

// try runs the tests that reach a mutant, in few processes: the fast ones together.
func (t *target) try(ctx context.Context, s site) (v verdict, by string) {
	tests := t.reach[s.id]
	if len(tests) == 0 {
		return unreached, ""
	}
	limit, cancel := context.WithTimeout(ctx, t.each)
	defer cancel()
	for len(tests) > 0 {
		n, sum := 0, time.Duration(0)
		for n < len(tests) && (n == 0 || sum+tests[n].took < 2*time.Second) {
			sum += tests[n].took
			n++
		}
		var names []string
		for _, x := range tests[:n] {
			names = append(names, x.name)
		}
		tests = tests[n:]
		// A mutant that makes a test hang is noticed, too.
		own, cancel := context.WithTimeout(limit, 10*sum+20*time.Second)
		out, err := t.command(own, []string{"KVD_MUTANT=" + strconv.Itoa(s.id)}, "-test.failfast", "-test.run", "^("+strings.Join(names, "|")+")$").CombinedOutput()
		hung := own.Err() != nil && limit.Err() == nil
		cancel()
		switch {
		case ctx.Err() != nil || limit.Err() != nil:
			return unjudged, " (its time was up)"
		case hung:
			return killed, " by a hang"
		case err != nil:
			if m := failure.FindSubmatch(out); m != nil {
				return killed, " by " + string(m[1])
			}
			return killed, " by a crash"
		}
	}
	return survived, ""
}

var failure = regexp.MustCompile(`(?m)^--- FAIL: (\w+)`)

// command runs the binary where go test would run it.
func (t *target) command(ctx context.Context, env []string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, t.binary, append([]string{"-test.count=1"}, args...)...)
	cmd.Dir = t.dir
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = time.Second
	return cmd
}

// readJudged reads the survivors: a line with the name, and one with the reason behind
// it, which is indented.
func readJudged(path string) (map[string]string, error) {
	known := make(map[string]string)
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return known, nil
	}
	if err != nil {
		return nil, err
	}
	var name string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "\t"):
			known[name] = strings.TrimSpace(line)
		default:
			name = line
			known[name] = ""
		}
	}
	for name, reason := range known {
		if reason == "" {
			return nil, fmt.Errorf("%s: %q has no reason", path, name)
		}
	}
	return known, nil
}
