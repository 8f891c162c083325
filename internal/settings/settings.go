// Package settings reads what a serving node is told: by flags, by the
// environment, by a file, and by default, in this order.
//
// One table has a row for each setting; flags, variables, keys of the file,
// the help, the checks and the documentation follow from it. Each origin is
// read into a Layer of texts. Resolve takes each setting from the first layer
// that has it, parses it, and then looks at all of them together, so that what
// is wrong is said at once, each with its name and where it came from.
package settings

import (
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap/zapcore"
)

// Where a node serves unless told otherwise.
const (
	DefaultClientURL = "http://127.0.0.1:12380"
	DefaultPeerURL   = "http://127.0.0.1:12379"
	DefaultDataRoot  = "kvd-data"
)

// Settings are what a serving node works with: every setting parsed, checked
// against the others, and with what follows from them filled in.
type Settings struct {
	ID      uint64 // 0: the cluster that the node joins chooses
	Name    string // "": the cluster chooses
	DataDir string
	Engine  string // pebble or memory

	Cluster      []Member // the initial members; position + 1 is the id
	ClusterToken string
	// Join says that the cluster of the Cluster list exists already; with
	// JoinURLs, members to ask for admission, there is no such list.
	Join     bool
	JoinURLs []string

	ListenClient    []string // http, https or unix URLs; never empty
	ListenPeer      string   // http or https
	ListenMetrics   []string // http or unix; empty: metrics are with the clients
	AdvertiseClient []string // empty where no address is known that others could use
	AdvertisePeer   []string

	Port        uint64 // raftexample's way of saying ListenClient; 0: not said
	RootMembers bool

	TLSCertFile   string
	TLSKeyFile    string
	TLSCAFile     string // who signs the certificates of clients
	TLSClientAuth string // off, request or require
	TLSCRLFile    string
	TLSMinVersion uint16 // as in crypto/tls; of clients and peers

	PeerCertFile  string
	PeerKeyFile   string
	PeerCAFile    string
	PeerCRLFile   string
	InsecurePeers bool // members may talk in the clear beyond loopback

	QuotaBytes    int64 // 0: no quota
	MaxValueBytes int64

	CheckpointBytes int64
	CatchUpBytes    int64

	Heartbeat time.Duration
	Election  time.Duration // at least 5 times Heartbeat

	MaxConnections int64 // of clients; 0: no limit
	MaxInFlight    int64 // requests in work

	LogLevel   zapcore.Level
	LogFormat  string // json, console, or "" for what suits the output
	RequestLog string // off, errors or all
	Pprof      bool

	ConfigFile string // "": none

	// Given has the settings that were not left at their defaults, by name.
	Given Layer
	// Notes tell of what was accepted although it has no effect.
	Notes []string
}

// Member is one of the initial members of a cluster.
type Member struct {
	Name string
	URL  string // of its peer listener
}

// Given is the text of a setting and where it was found.
type Given struct {
	Text   string
	Origin string // such as "flag --port"
}

// Layer has the settings that one origin gives, by the names that it uses.
type Layer map[string]Given

// Resolve takes each setting from the first layer that gives it, else its
// default, parses it, and checks all of them together. The error has every
// problem that was found.
func Resolve(layers ...Layer) (*Settings, error) {
	s := &Settings{Given: make(Layer)}
	var problems problemList
	own := make([]Layer, len(layers))
	for i, l := range layers {
		var notes []string
		own[i], notes = l.translate(&problems)
		s.Notes = append(s.Notes, notes...)
	}
	for i := range table {
		s.take(&table[i], own, &problems)
	}
	if len(problems) == 0 {
		s.derive(&problems)
	}
	return s, problems.join()
}

// take stores one setting.
func (s *Settings) take(row *setting, layers []Layer, p *problemList) {
	g, ok := lookUp(layers, row.name)
	if ok {
		s.Given[row.name] = g
	} else if g = (Given{Text: row.def, Origin: "default"}); g.Text == "" {
		return
	}
	err := row.store(s, g.Text)
	switch {
	case err != nil && row.secret:
		p.add("%s: the value is not acceptable: it is empty, or has more than one line", describe(row.name, g.Origin))
	case err != nil:
		p.add("%s: %w", describe(row.name, g.Origin), err)
	}
}

func lookUp(layers []Layer, name string) (Given, bool) {
	for _, l := range layers {
		if g, ok := l[name]; ok {
			return g, true
		}
	}
	return Given{}, false
}

// describe names a setting and where its value comes from.
func describe(name, origin string) string {
	if origin == "flag --"+name {
		return "--" + name
	}
	return fmt.Sprintf("--%s (from %s)", name, origin)
}

// Describe names a setting and where its value comes from, which may be its
// default.
func (s *Settings) Describe(name string) string {
	if g, ok := s.Given[name]; ok {
		return describe(name, g.Origin)
	}
	return describe(name, "default")
}

// Has reports whether the setting was given rather than left at its default.
func (s *Settings) Has(name string) bool {
	_, ok := s.Given[name]
	return ok
}

// Changed describes the settings that were given, in the order of the help.
func (s *Settings) Changed() []string {
	var out []string
	for i := range table {
		if s.Has(table[i].name) {
			out = append(out, s.Describe(table[i].name))
		}
	}
	return out
}

// ElectionTicks is the election timeout in heartbeats, rounded up.
func (s *Settings) ElectionTicks() int {
	return int((s.Election + s.Heartbeat - 1) / s.Heartbeat)
}

// problemList collects what is wrong, so that all of it is said at once.
type problemList []error

func (p *problemList) add(format string, args ...any) {
	*p = append(*p, fmt.Errorf(format, args...))
}

func (p problemList) join() error { return errors.Join(p...) }
