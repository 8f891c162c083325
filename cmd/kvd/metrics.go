package main

import (
	"errors"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/httpapi/meter"
	"github.com/kvd-io/kvd/internal/metrics"
)

// instruments are the metrics of the process and the parts that feed them.
type instruments struct {
	registry *prometheus.Registry
	requests *meter.Metrics
	loops    *metrics.Loops
	memory   *budget.Budget // for requests
}

// newInstruments registers everything that exists before the node does. The
// registry is kvd's own: the default one belongs to the libraries, and two nodes
// in one process, as in tests, would collide in it.
func newInstruments(v api.Version, droppedLogLines func() uint64, memory *budget.Budget) (*instruments, error) {
	i := &instruments{registry: prometheus.NewRegistry(), memory: memory}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "kvd_build_info", Help: "Always 1; the labels identify the build.",
		ConstLabels: prometheus.Labels{"version": v.Version, "commit": v.Commit, "goversion": v.GoVersion},
	})
	build.Set(1)
	dropped := prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "kvd_log_lines_dropped_total", Help: "Log lines dropped because standard error was not read fast enough, or failed.",
	}, func() float64 { return float64(droppedLogLines()) })
	err := errors.Join(i.registry.Register(build), i.registry.Register(dropped), i.registry.Register(memory))
	var e error
	i.requests, e = meter.New(i.registry)
	err = errors.Join(err, e)
	i.loops, e = metrics.NewLoops(i.registry)
	return i, errors.Join(err, e)
}

// watch adds the figures of the node.
func (i *instruments) watch(n metrics.Source) error {
	return i.registry.Register(metrics.Collector{Source: n})
}

// maxScrapes bounds concurrent scrapes; each is assembled in memory.
const maxScrapes = 8

// handler serves /metrics. Besides kvd's registry it shows the default one, with
// which the Go runtime, the process collector and etcd's packages register.
func (i *instruments) handler() http.Handler {
	both := prometheus.Gatherers{i.registry, prometheus.DefaultGatherer}
	return promhttp.HandlerFor(both, promhttp.HandlerOpts{EnableOpenMetrics: true, MaxRequestsInFlight: maxScrapes})
}
