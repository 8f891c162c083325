package main

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/zap/zapcore"
)

// settings are what a serving node works with: every setting parsed, checked
// against the others, and with what follows from them filled in.
type settings struct {
	id      uint64 // 0: the cluster that the node joins chooses
	name    string // "": the cluster chooses
	dataDir string
	engine  string // pebble or memory

	cluster []string // peer URLs of the initial members; position + 1 is the id
	token   string
	// join says that the cluster of the cluster list exists already; with
	// joinURLs, members to ask for admission, there is no such list.
	join     bool
	joinURLs []string

	listenClient    string
	listenPeer      string
	advertiseClient []string // empty where no address is known that others could use
	advertisePeer   []string

	port        uint64 // raftexample's way of saying listenClient; 0: not said
	rootMembers bool

	quotaBytes    int64 // 0: no quota
	maxValueBytes int64

	checkpointBytes int64
	catchUpBytes    int64

	heartbeat time.Duration
	election  time.Duration // a multiple of heartbeat

	logLevel  zapcore.Level
	logFormat string // json, console, or "" for what suits the output

	// given has the settings that were not left at their defaults, by name.
	given map[string]given
}

// given is the text of a setting and where it was found.
type given struct {
	text   string
	origin string // such as "flag --port"
}

// setting is one row of the table of settings, which is all that the flags,
// the environment, the help and the parser know of them.
type setting struct {
	name string
	kind string // what a value looks like, for the help
	def  string // "": follows from the other settings, as help says
	help string
	// bare is the value that the flag's name alone stands for; "" where it
	// needs a value.
	bare  string
	store func(s *settings, text string) error
}

// env is the environment variable of the setting.
func (s *setting) env() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(s.name, "-", "_"))
}

const (
	envPrefix = "KVD_"

	defaultClientURL = "http://127.0.0.1:12380"
	defaultPeerURL   = "http://127.0.0.1:12379"
	defaultDataRoot  = "kvd-data"
)

// table has the settings in the order of the help.
var table = []setting{
	{name: "id", kind: "number", help: "id of this member: the position of its URL in --cluster, counted from 1 (default 1)",
		store: into(func(s *settings) *uint64 { return &s.id }, parseID)},
	{name: "cluster", kind: "URL,URL,...", help: "peer URLs of all members, in the same order on each (default: this node alone)",
		store: into(func(s *settings) *[]string { return &s.cluster }, parseURLs)},
	{name: "port", kind: "number", help: "port for clients on 127.0.0.1; short for --listen-client",
		store: into(func(s *settings) *uint64 { return &s.port }, parsePort)},
	{name: "join", kind: "URL,...", bare: "true", help: "alone: the cluster exists and this member was added to it; with client or peer URLs of members: ask them for admission",
		store: storeJoin},

	{name: "name", kind: "text", help: "name of this member (default kvdID)",
		store: into(func(s *settings) *string { return &s.name }, parseText)},
	{name: "data-dir", kind: "directory", help: "where this member keeps its data (default ./" + defaultDataRoot + "/ID)",
		store: into(func(s *settings) *string { return &s.dataDir }, parseText)},
	{name: "listen-client", kind: "URL", help: "address to serve clients on (default " + defaultClientURL + ")",
		store: into(func(s *settings) *string { return &s.listenClient }, parseURL)},
	{name: "listen-peer", kind: "URL", help: "address to serve other members on (default: its URL in --cluster, or " + defaultPeerURL + ")",
		store: into(func(s *settings) *string { return &s.listenPeer }, parseURL)},
	{name: "advertise-client", kind: "URL,...", help: "URLs that clients reach this node by (default: that of --listen-client)",
		store: into(func(s *settings) *[]string { return &s.advertiseClient }, parseURLs)},
	{name: "advertise-peer", kind: "URL,...", help: "URLs that members reach this node by (default: its URL in --cluster, or that of --listen-peer)",
		store: into(func(s *settings) *[]string { return &s.advertisePeer }, parseURLs)},
	{name: "cluster-token", kind: "text", def: "kvd", help: "sets clusters of equal members apart; the same on each",
		store: into(func(s *settings) *string { return &s.token }, parseText)},

	{name: "engine", kind: "pebble|memory", def: "pebble", help: "keep the data on disk (pebble) or in memory; the log is on disk in both cases",
		store: into(func(s *settings) *string { return &s.engine }, oneOf("pebble", "memory"))},
	{name: "quota", kind: "bytes", def: "8GiB", help: "most bytes of live data that a new cluster takes; 0: no quota",
		store: into(func(s *settings) *int64 { return &s.quotaBytes }, parseSize)},
	{name: "max-value-bytes", kind: "bytes", def: "1MiB", help: "largest value that a new cluster takes, up to 64MiB",
		store: into(func(s *settings) *int64 { return &s.maxValueBytes }, parseSize)},
	{name: "heartbeat-interval", kind: "duration", def: "100ms", help: "pace of the leader's heartbeats",
		store: into(func(s *settings) *time.Duration { return &s.heartbeat }, parseDuration)},
	{name: "election-timeout", kind: "duration", def: "1s", help: "silence of the leader after which another is elected, at least 5 heartbeats",
		store: into(func(s *settings) *time.Duration { return &s.election }, parseDuration)},
	{name: "checkpoint-bytes", kind: "bytes", def: "64MiB", help: "release the log that is older than the data on disk after so much of it",
		store: into(func(s *settings) *int64 { return &s.checkpointBytes }, parseSize)},
	{name: "catch-up-bytes", kind: "bytes", def: "32MiB", help: "log kept in memory for members that lag; one that lags more gets a snapshot",
		store: into(func(s *settings) *int64 { return &s.catchUpBytes }, parseSize)},
	{name: "root-members", kind: "on|off", def: "on", help: "let POST /ID and DELETE /ID change the membership",
		store: into(func(s *settings) *bool { return &s.rootMembers }, parseSwitch)},

	{name: "log-level", kind: "debug|info|warn|error", def: "info", help: "least severe messages to log",
		store: into(func(s *settings) *zapcore.Level { return &s.logLevel }, parseLevel)},
	{name: "log-format", kind: "json|console", help: "form of the log on standard error (default: console on a terminal, else json)",
		store: into(func(s *settings) *string { return &s.logFormat }, oneOf("json", "console"))},
}

// settingNamed returns the row of the table, nil where there is none.
func settingNamed(name string) *setting {
	i := slices.IndexFunc(table, func(s setting) bool { return s.name == name })
	if i < 0 {
		return nil
	}
	return &table[i]
}

// resolve takes each setting from the first layer that gives it, else its
// default, parses it, and checks all of them together. The error has every
// problem that was found.
func resolve(layers ...map[string]given) (*settings, error) {
	s := &settings{given: make(map[string]given)}
	var problems problemList
	for i := range table {
		row := &table[i]
		g, ok := lookUp(layers, row.name)
		if ok {
			s.given[row.name] = g
		} else if g = (given{text: row.def, origin: "default"}); g.text == "" {
			continue
		}
		if err := row.store(s, g.text); err != nil {
			problems.add("%s: %w", describe(row.name, g.origin), err)
		}
	}
	if len(problems) == 0 {
		s.derive(&problems)
	}
	return s, problems.join()
}

func lookUp(layers []map[string]given, name string) (given, bool) {
	for _, l := range layers {
		if g, ok := l[name]; ok {
			return g, true
		}
	}
	return given{}, false
}

// describe names a setting and where its value comes from.
func describe(name, origin string) string {
	if origin == "flag --"+name {
		return "--" + name
	}
	return fmt.Sprintf("--%s (from %s)", name, origin)
}

// describe names a setting that was given, or its default.
func (s *settings) describe(name string) string {
	if g, ok := s.given[name]; ok {
		return describe(name, g.origin)
	}
	return describe(name, "default")
}

// has reports whether the setting was given rather than left at its default.
func (s *settings) has(name string) bool {
	_, ok := s.given[name]
	return ok
}

// problemList collects what is wrong, so that all of it is said at once.
type problemList []error

func (p *problemList) add(format string, args ...any) {
	*p = append(*p, fmt.Errorf(format, args...))
}

func (p problemList) join() error { return errors.Join(p...) }

// addFlags makes a flag of each setting.
func addFlags(flags *pflag.FlagSet) {
	for i := range table {
		row := &table[i]
		flags.Var(&flagValue{row: row, text: row.def}, row.name, row.help+" ["+row.env()+"]")
		flags.Lookup(row.name).NoOptDefVal = row.bare
	}
	flags.SortFlags = false
}

// flagValue keeps a flag's text for resolve to parse, so that a flag is judged
// by the same rules as any other origin.
type flagValue struct {
	row  *setting
	text string
}

func (v *flagValue) Set(text string) error { v.text = text; return nil }
func (v *flagValue) String() string        { return v.text }
func (v *flagValue) Type() string          { return v.row.kind }

// flagLayer has the settings given on the command line.
func flagLayer(flags *pflag.FlagSet) map[string]given {
	layer := make(map[string]given)
	flags.Visit(func(f *pflag.Flag) {
		if settingNamed(f.Name) != nil {
			layer[f.Name] = given{text: f.Value.String(), origin: "flag --" + f.Name}
		}
	})
	return layer
}

// envLayer has the settings given in the environment ("NAME=value" each). An
// empty variable is as good as none; one that names no setting is an error.
func envLayer(environ []string) (map[string]given, error) {
	layer := make(map[string]given)
	unknown := make(map[string]bool)
	for _, pair := range environ {
		name, text, _ := strings.Cut(pair, "=")
		if !strings.HasPrefix(name, envPrefix) || text == "" || isServiceLink(name, text) {
			continue
		}
		row := settingOfEnv(name)
		if row == nil {
			unknown[name] = true
			continue
		}
		layer[row.name] = given{text: text, origin: "environment variable " + name}
	}
	var problems problemList
	for _, name := range slices.Sorted(maps.Keys(unknown)) {
		problems.add("environment variable %s names no setting%s", name, similar(name))
	}
	return layer, problems.join()
}

func settingOfEnv(name string) *setting {
	i := slices.IndexFunc(table, func(s setting) bool { return s.env() == name })
	if i < 0 {
		return nil
	}
	return &table[i]
}

// similar proposes the variable that was probably meant.
func similar(name string) string {
	for i := range table {
		env := table[i].env()
		if strings.HasPrefix(env, name) || strings.HasPrefix(name, env) ||
			strings.ReplaceAll(env, "_", "") == strings.ReplaceAll(strings.ToUpper(name), "_", "") {
			return "; did you mean " + env + "?"
		}
	}
	return "; see kvd --help for all of them"
}

// Kubernetes describes each service in the environment of every pod of its
// namespace. A service called kvd must not be taken for settings of kvd.
var (
	serviceLinkName  = regexp.MustCompile(`_SERVICE_HOST$|_SERVICE_PORT(_[A-Z0-9_]+)?$|_PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$`)
	serviceLinkValue = regexp.MustCompile(`^(tcp|udp|sctp)://`)
)

func isServiceLink(name, text string) bool {
	return serviceLinkName.MatchString(name) || strings.HasSuffix(name, "_PORT") && serviceLinkValue.MatchString(text)
}
