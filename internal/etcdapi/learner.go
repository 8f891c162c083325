package etcdapi

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// forLearners reports whether a learner answers a call, as in etcd: what describes the
// member itself, and reads that may be stale. Clients take the refusal of everything else
// as a reason to go to another member.
func forLearners(c *call, req any) bool {
	switch r := req.(type) {
	case *pb.RangeRequest:
		return r.GetSerializable()
	case *pb.StatusRequest, *healthpb.HealthCheckRequest:
		return true
	}
	return c.stream != nil && (c.stream.StreamName == "Snapshot" || c.stream.StreamName == "Watch" && isHealth(c))
}

// isHealth tells the Watch of the health service from that of etcd.
func isHealth(c *call) bool {
	_, ok := c.service.(*healthService)
	return ok
}
