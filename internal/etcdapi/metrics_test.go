package etcdapi

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
)

// gathered returns the series of the metrics, for example "name{labels} 1".
func gathered(t *testing.T, m *Metrics) (out []string) {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(m)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, s := range f.GetMetric() {
			var labels []string
			for _, l := range s.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			out = append(out, fmt.Sprintf("%s{%s} %v", f.GetName(), strings.Join(labels, ","), s.GetCounter().GetValue()))
		}
	}
	return out
}

// Calls are counted under etcd's names, and clients cannot make up labels without end.
func TestMetrics(t *testing.T) {
	m := NewMetrics()
	put, watch := m.of("etcdserverpb.KV", "Put", "unary"), m.of("etcdserverpb.Watch", "Watch", "bidi_stream")
	put.began()
	put.ended(codes.OK)
	put.began()
	put.ended(codes.Unavailable)
	watch.began()
	watch.sent.Add(3)
	watch.ended(codes.Canceled)
	for i := range 100 {
		m.client(put, fmt.Sprintf("3.%d", i))
		m.client(watch, strings.Repeat("x", i))
	}
	m.client(put, "unknown")
	got := gathered(t, m)
	const kv, w = "grpc_method=Put,grpc_service=etcdserverpb.KV,grpc_type=unary", "grpc_method=Watch,grpc_service=etcdserverpb.Watch,grpc_type=bidi_stream"
	for _, want := range []string{
		"grpc_server_started_total{" + kv + "} 2", "grpc_server_msg_received_total{" + kv + "} 2", "grpc_server_msg_sent_total{" + kv + "} 1",
		"grpc_server_handled_total{grpc_code=OK," + kv + "} 1", "grpc_server_handled_total{grpc_code=Unavailable," + kv + "} 1",
		"grpc_server_handled_total{grpc_code=Canceled," + w + "} 1", "grpc_server_msg_sent_total{" + w + "} 3",
		"etcd_server_client_requests_total{client_api_version=other,type=stream} 100",
		"etcd_server_client_requests_total{client_api_version=3.7,type=unary} 1", "etcd_server_client_requests_total{client_api_version=unknown,type=unary} 1",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("there is no %s", want)
		}
	}
	if len(got) > 60 {
		t.Errorf("%d series", len(got))
	}
}
