package etcdapi

import (
	"context"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// healthService is the health check of gRPC. As in etcd there is one service, with the
// empty name, and it serves as long as the port does: whether the cluster has a leader is
// a matter of Status and /health.
type healthService struct {
	healthpb.UnimplementedHealthServer
	leaving context.Context //nolint:containedctx // of the server, which has one for all streams
}

func (h *healthService) state() healthpb.HealthCheckResponse_ServingStatus {
	if h.leaving.Err() != nil {
		return healthpb.HealthCheckResponse_NOT_SERVING
	}
	return healthpb.HealthCheckResponse_SERVING
}

// Check implements healthpb.HealthServer.
func (h *healthService) Check(_ context.Context, r *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	if r.GetService() != "" {
		return nil, status.Error(codes.NotFound, "unknown service")
	}
	return &healthpb.HealthCheckResponse{Status: h.state()}, nil
}

// List implements healthpb.HealthServer.
func (h *healthService) List(context.Context, *healthpb.HealthListRequest) (*healthpb.HealthListResponse, error) {
	return &healthpb.HealthListResponse{Statuses: map[string]*healthpb.HealthCheckResponse{"": {Status: h.state()}}}, nil
}

// Watch implements healthpb.HealthServer. It sends the state now, and once more when the
// node goes out of service.
func (h *healthService) Watch(r *healthpb.HealthCheckRequest, stream grpc.ServerStreamingServer[healthpb.HealthCheckResponse]) error {
	state := h.state()
	if r.GetService() != "" {
		state = healthpb.HealthCheckResponse_SERVICE_UNKNOWN
	}
	if err := stream.Send(&healthpb.HealthCheckResponse{Status: state}); err != nil {
		return err
	}
	<-stream.Context().Done()
	if h.leaving.Err() == nil {
		return stream.Context().Err()
	}
	if err := stream.Send(&healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_NOT_SERVING}); err != nil {
		return err
	}
	return rpctypes.ErrGRPCStopped
}
