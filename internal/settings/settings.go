package settings

import (
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap/zapcore"
)

// The addresses and the directory of a node without settings.
const (
	DefaultClientURL = "http://127.0.0.1:12380"
	DefaultEtcdURL   = "http://127.0.0.1:2379" // of --listen-etcd without a value
	DefaultPeerURL   = "http://127.0.0.1:12379"
	DefaultDataRoot  = "kvd-data"
)

// Settings are the settings of a serving node: parsed, checked against each
// other, and completed with what follows from them. They do not change; a reload
// makes new ones.
type Settings struct {
	ID      uint64 // 0 if the cluster that the node joins assigns one
	Name    string // "" if the cluster assigns one
	DataDir string
	Engine  string // pebble or memory

	Cluster      []Member // the initial members; the ID is the position + 1
	ClusterToken string
	// Join is true if the cluster of the Cluster list exists and this member was
	// added to it. JoinURLs are members to ask for admission; with them, Cluster
	// is empty.
	Join     bool
	JoinURLs []string
	// RemoveDeadAfter is the silence after which the leader removes a member; 0 means
	// never.
	RemoveDeadAfter time.Duration

	ListenClient    []string // http, https or unix URLs; never empty
	ListenEtcd      []string // http, https or unix URLs; empty if etcd's clients are not served
	ListenPeer      string   // http or https
	ListenMetrics   []string // http or unix; may be empty
	AdvertiseClient []string // empty if no address is known that others could use
	AdvertiseEtcd   []string // as AdvertiseClient
	AdvertisePeer   []string // never empty
	AllowedHosts    []string // names for browsers, in lower case

	Port        uint64 // raftexample's form of ListenClient; 0 if not given
	RootMembers bool
	Dialects    []string // of Dialects; never nil
	UI          string   // off, read or on

	TLSCertFile   string
	TLSKeyFile    string
	TLSCAFile     string // signs the certificates of clients
	TLSClientAuth string // off, request or require
	TLSCRLFile    string
	TLSMinVersion uint16 // as in crypto/tls; for clients and members

	PeerCertFile  string
	PeerKeyFile   string
	PeerCAFile    string
	PeerCRLFile   string
	RebuildStore  bool // fill a new store from the log or another member
	ScrubInterval time.Duration
	InsecurePeers bool // peer traffic without TLS may leave this machine

	AuthCertUser     string // cn, san-uri, san-email or off
	AuthLocalRoot    bool   // on a Unix socket, the user of this process is root
	AuthMetrics      bool   // /metrics needs credentials
	AuthTokenTTL     time.Duration
	AuthToken        string // simple, or as ParseJWT takes it
	BcryptCost       int64
	InsecureAuth     bool   // credentials without TLS may leave this machine
	RootPasswordFile string // of a cluster that begins with rights enabled

	AuditLog        string // a file; "" for none
	AuditMaxSize    int64
	AuditMaxAge     time.Duration // 0 means forever
	AuditMaxBackups int64         // 0 means unlimited
	AuditKeys       string        // plain, hashed or off
	AuditStrict     bool

	QuotaBytes    int64 // 0 means unlimited
	MaxValueBytes int64

	CheckpointBytes int64
	CatchUpBytes    int64

	Heartbeat time.Duration
	Election  time.Duration // at least 5 times Heartbeat

	MaxConnections int64 // of clients; 0 means unlimited
	MaxInFlight    int64 // client requests served at once; at least 1
	// MaxRequestBytes, MaxTxnOps, MaxLearners, and WatchProgress are about clients of etcd.
	MaxRequestBytes int64
	MaxTxnOps       int64
	MaxLearners     int64
	WatchProgress   time.Duration // at least 100ms

	MaxWatches    int64 // watches and long polls at once; at least 1
	RequestMemory int64 // bytes that client requests may hold; 0 means a share of the process's memory

	LogLevel   zapcore.Level
	LogFormat  string // json, console, or "" to choose by the output
	RequestLog string // off, errors or all
	Pprof      bool

	ConfigFile string // "" if there is none

	// Given has the settings that some origin gave, by name.
	Given Layer
	// Notes are messages about settings that were accepted without effect.
	Notes []string
}

// Member is one of the initial members of a cluster.
type Member struct {
	Name string
	URL  string // peer URL
}

// Given is the text of a setting and where it was found.
type Given struct {
	Text   string
	Origin string // for example, "flag --port" or "kvd.yaml:3"
}

// defaultOrigin is the origin of a value that no layer has.
const defaultOrigin = "default"

// Layer has the settings of one origin, under the names that the origin uses.
type Layer map[string]Given

// Resolve takes each setting from the first layer that has it, or its default,
// parses it, and checks the settings against each other. The error reports every
// problem found.
//
// Contradictions are looked for only if every setting could be parsed: a value
// that is wrong would contradict others for no reason of its own.
func Resolve(layers ...Layer) (*Settings, error) {
	s := &Settings{Given: make(Layer)}
	var problems problemList
	// All layers are translated before any setting is taken: a flag under etcd's name
	// must win over a variable under kvd's.
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

// take parses one setting and stores it.
func (s *Settings) take(row *setting, layers []Layer, p *problemList) {
	g, ok := lookUp(layers, row.name)
	if ok {
		s.Given[row.name] = g
	} else if g = (Given{Text: row.def, Origin: defaultOrigin}); g.Text == "" {
		return
	}
	err := row.store(s, g.Text)
	switch {
	case err != nil && row.secret: // the codec's error quotes the value
		p.add("%s: the value is empty or has more than one line", describe(row.name, g.Origin))
	case err != nil:
		p.add("%s: %w", describe(row.name, g.Origin), err)
	}
}

// lookUp returns the setting from the first layer that has it.
func lookUp(layers []Layer, name string) (Given, bool) {
	for _, l := range layers {
		if g, ok := l[name]; ok {
			return g, true
		}
	}
	return Given{}, false
}

// describe names a setting and the origin of its value.
func describe(name, origin string) string {
	switch origin {
	case "flag --" + name:
		return "--" + name
	case defaultOrigin:
		return fmt.Sprintf("--%s (%s)", name, origin)
	}
	return fmt.Sprintf("--%s (from %s)", name, origin)
}

// Describe names a setting and the origin of its value, which may be its default.
func (s *Settings) Describe(name string) string {
	if g, ok := s.Given[name]; ok {
		return describe(name, g.Origin)
	}
	return describe(name, defaultOrigin)
}

// Has reports whether some origin gave the setting.
func (s *Settings) Has(name string) bool {
	_, ok := s.Given[name]
	return ok
}

// Changed describes the settings that some origin gave, in the order of the table.
func (s *Settings) Changed() []string {
	var out []string
	for i := range table {
		if s.Has(table[i].name) {
			out = append(out, s.Describe(table[i].name))
		}
	}
	return out
}

// ElectionTicks returns the election timeout in heartbeat intervals, rounded up:
// members must never be less patient than the setting says.
func (s *Settings) ElectionTicks() int {
	return int((s.Election + s.Heartbeat - 1) / s.Heartbeat)
}

// problemList collects errors, so that all of them are reported at once.
type problemList []error

func (p *problemList) add(format string, args ...any) {
	*p = append(*p, fmt.Errorf(format, args...))
}

// join returns one error that lists the problems line by line, or nil.
func (p problemList) join() error { return errors.Join(p...) }
