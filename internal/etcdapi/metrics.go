package etcdapi

import (
	"regexp"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"github.com/kvd-io/kvd/internal/etcdapi/codec"
)

// Metrics counts calls under the names that etcd's dashboards read. It is a
// prometheus.Collector, and safe for concurrent use.
type Metrics struct {
	mu struct {
		sync.Mutex // held while a method is registered, and by a scrape
		calls      []*callMetrics
	}
	clients sync.Map // of clientKey to *atomic.Uint64
	known   atomic.Int64
	ranges  atomic.Uint64               // that were read
	codec   atomic.Pointer[codec.Codec] // nil until a server counts here
}

// NewMetrics returns Metrics that have counted nothing.
func NewMetrics() *Metrics { return new(Metrics) }

// numCodes is the number of gRPC's codes, which are 0 to 16.
const numCodes = int(codes.Unauthenticated) + 1

// callMetrics are the counters of a method.
type callMetrics struct {
	service, method, kind   string
	started, received, sent atomic.Uint64
	handled                 [numCodes]atomic.Uint64
	// client is the count of the version that called last: nearly always the same.
	client atomic.Pointer[clientCount]
}

func (m *Metrics) of(service, method, kind string) *callMetrics {
	c := &callMetrics{service: service, method: method, kind: kind}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.calls = append(m.mu.calls, c)
	return c
}

func (c *callMetrics) began() {
	c.started.Add(1)
	if c.kind == "unary" {
		c.received.Add(1)
	}
}

func (c *callMetrics) ended(code codes.Code) {
	c.handled[min(int(code), numCodes-1)].Add(1)
	if c.kind == "unary" && code == codes.OK {
		c.sent.Add(1)
	}
}

// clientKey is a kind of call with the version of a client.
type clientKey struct{ kind, version string }

// maxVersions bounds the versions of clients that are told apart. A client can claim any.
const maxVersions = 32

var versionForm = regexp.MustCompile(`^[0-9]{1,3}(\.[0-9]{1,3}){1,2}$`)

// clientCount counts the calls of clients that claim a version.
type clientCount struct {
	claimed string
	calls   *atomic.Uint64
}

// client counts a call of a client of some version.
func (m *Metrics) client(of *callMetrics, version string) {
	last := of.client.Load()
	if last == nil || last.claimed != version {
		last = &clientCount{version, m.countOf(of.kind, version)}
		of.client.Store(last)
	}
	last.calls.Add(1)
}

// countOf returns the count of a kind of calls and a version. Versions without the form of
// one, or too many of them, are counted together.
func (m *Metrics) countOf(kind, version string) *atomic.Uint64 {
	if kind != "unary" {
		kind = "stream"
	}
	k := clientKey{kind, version}
	if n, ok := m.clients.Load(k); ok {
		return n.(*atomic.Uint64)
	}
	if version != "unknown" && (!versionForm.MatchString(version) || m.known.Load() >= maxVersions) {
		k.version = "other"
	}
	n, loaded := m.clients.LoadOrStore(k, new(atomic.Uint64))
	if !loaded {
		m.known.Add(1)
	}
	return n.(*atomic.Uint64)
}

var (
	callLabels   = []string{"grpc_type", "grpc_service", "grpc_method"}
	startedDesc  = prometheus.NewDesc("grpc_server_started_total", "Calls of etcd clients that this node has begun to handle, by method.", callLabels, nil)
	receivedDesc = prometheus.NewDesc("grpc_server_msg_received_total", "Messages received in calls of etcd clients, by method.", callLabels, nil)
	sentDesc     = prometheus.NewDesc("grpc_server_msg_sent_total", "Messages sent in calls of etcd clients, by method.", callLabels, nil)
	handledDesc  = prometheus.NewDesc("grpc_server_handled_total", "Calls of etcd clients that have ended, by method and status code.", append(slices.Clone(callLabels), "grpc_code"), nil)
	inDesc       = prometheus.NewDesc("etcd_network_client_grpc_received_bytes_total", "Bytes of the messages received from etcd clients over gRPC.", nil, nil)
	outDesc      = prometheus.NewDesc("etcd_network_client_grpc_sent_bytes_total", "Bytes of the messages sent to etcd clients over gRPC.", nil, nil)
	rangesDesc   = prometheus.NewDesc("etcd_mvcc_range_total", "Ranges that this member has read for etcd clients outside of transactions.", nil, nil)
	clientsDesc  = prometheus.NewDesc("etcd_server_client_requests_total", "Calls of etcd clients, by the version that the client claims.", []string{"type", "client_api_version"}, nil)
)

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{startedDesc, receivedDesc, sentDesc, handledDesc, clientsDesc, inDesc, outDesc, rangesDesc} {
		to <- d
	}
}

// Collect implements prometheus.Collector. A code that a method never ended with has no
// series, except OK.
func (m *Metrics) Collect(to chan<- prometheus.Metric) {
	m.mu.Lock()
	calls := slices.Clone(m.mu.calls)
	m.mu.Unlock()
	for _, c := range calls {
		labels := []string{c.kind, c.service, c.method}
		count(to, startedDesc, &c.started, labels...)
		count(to, receivedDesc, &c.received, labels...)
		count(to, sentDesc, &c.sent, labels...)
		for code := range c.handled {
			if n := &c.handled[code]; code == int(codes.OK) || n.Load() > 0 {
				count(to, handledDesc, n, append(slices.Clone(labels), codes.Code(code).String())...)
			}
		}
	}
	count(to, rangesDesc, &m.ranges)
	if c := m.codec.Load(); c != nil {
		to <- prometheus.MustNewConstMetric(inDesc, prometheus.CounterValue, float64(c.Received()))
		to <- prometheus.MustNewConstMetric(outDesc, prometheus.CounterValue, float64(c.Sent()))
	}
	m.clients.Range(func(k, n any) bool {
		key := k.(clientKey)
		count(to, clientsDesc, n.(*atomic.Uint64), key.kind, key.version)
		return true
	})
}

func count(to chan<- prometheus.Metric, d *prometheus.Desc, n *atomic.Uint64, labels ...string) {
	to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n.Load()), labels...)
}
