package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/pace"
)

// Calls carries out calls in this process. Their errors have the status of gRPC.
type Calls interface {
	// Call is for a method of one answer. decode fills the request in.
	Call(ctx context.Context, method string, decode func(request any) error) (any, error)
	// Stream is for a method that streams.
	Stream(method string, stream grpc.ServerStream) error
}

// Options say what a Gateway needs. Calls, Health and Memory must be set.
type Options struct {
	Calls  Calls
	Health Health
	// Memory is claimed for bodies and answers.
	Memory *budget.Budget
	// MaxMessage bounds the messages of gRPC. A body may be as much larger as base64 makes it.
	MaxMessage int
	// Metrics answers /metrics; nil means that there is no such path.
	Metrics http.Handler
	// MayMeasure refuses who may not have the metrics, with an error of gRPC; nil refuses
	// nobody.
	MayMeasure func(ctx context.Context) error
	// Version is what /version says.
	Version Version
}

// Version is what clients are told about the server.
type Version struct {
	Server  string `json:"etcdserver"`
	Cluster string `json:"etcdcluster"`
	Storage string `json:"storage"`
}

// Gateway answers the requests. It is an http.Handler.
type Gateway struct {
	opts    Options
	foreign *http.CrossOriginProtection
}

// New returns a Gateway.
func New(o Options) *Gateway { return &Gateway{opts: o, foreign: http.NewCrossOriginProtection()} }

// ServeHTTP implements http.Handler.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	if rest, ok := strings.CutPrefix(path, "/v3beta/"); ok {
		path = "/v3/" + rest
	}
	switch {
	case strings.HasPrefix(path, "/v3/"):
		g.serveCall(w, r, path)
	case path == "/metrics" && g.opts.Metrics != nil:
		g.serveMetrics(w, r)
	case path == "/version":
		g.serveVersion(w, r)
	default:
		g.serveProbe(w, r)
	}
}

func (g *Gateway) serveMetrics(w http.ResponseWriter, r *http.Request) {
	if may := g.opts.MayMeasure; may != nil {
		if err := may(incoming(r)); err != nil {
			writeError(w, status.Convert(err))
			return
		}
	}
	g.opts.Metrics.ServeHTTP(w, r)
}

func (g *Gateway) serveVersion(w http.ResponseWriter, r *http.Request) {
	if !allowed(w, r) {
		return
	}
	text, _ := json.Marshal(&g.opts.Version) // strings alone
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(text)
}

// allowed lets GET alone through.
func allowed(w http.ResponseWriter, r *http.Request) bool {
	if r.Method == http.MethodGet {
		return true
	}
	w.Header().Set("Allow", http.MethodGet)
	http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
	return false
}

// serveCall answers a request to a path below /v3/.
func (g *Gateway) serveCall(w http.ResponseWriter, r *http.Request, path string) {
	c, ok := calls[path]
	switch {
	case !ok:
		writeError(w, status.New(codes.NotFound, "Not Found"))
	case r.Method != http.MethodPost:
		writeError(w, status.New(codes.Unimplemented, "Method Not Allowed"))
	case g.foreign.Check(r) != nil:
		writeError(w, status.New(codes.PermissionDenied, "a page of another site may not do this; see the same-origin policy of browsers"))
	case c.kind == unary:
		g.serveUnary(w, r, c)
	default:
		g.serveStream(w, r, c)
	}
}

// serveUnary answers a call of one answer.
func (g *Gateway) serveUnary(w http.ResponseWriter, r *http.Request, c call) {
	x := exchange{g: g, w: w, conn: http.NewResponseController(w), claim: g.opts.Memory.Claim()}
	defer x.claim.Release()
	body, err := x.read(r)
	if err != nil {
		writeError(w, status.Convert(err))
		return
	}
	answer, err := g.opts.Calls.Call(incoming(r), c.method, func(request any) error { return g.decode(body, request.(proto.Message)) })
	if err != nil {
		writeError(w, status.Convert(err))
		return
	}
	x.answer(r.Context(), answer.(proto.Message))
}

// exchange is a request for one answer, with what it holds.
type exchange struct {
	g     *Gateway
	w     http.ResponseWriter
	conn  *http.ResponseController
	claim budget.Claim
}

// read reads the body.
func (x *exchange) read(r *http.Request) ([]byte, error) {
	limit := int64(x.g.opts.MaxMessage)*4/3 + budget.Free
	body := pace.Body{From: r.Body, Conn: x.conn, Declared: r.ContentLength, Limit: limit, Claim: &x.claim}
	if r.ContentLength > limit {
		return nil, x.g.tooLarge()
	}
	text, err := body.Read(r.Context())
	_ = x.conn.SetReadDeadline(time.Time{}) // net/http goes on reading, to notice that the client leaves
	var full *budget.FullError
	switch {
	case err == nil:
		return text, nil
	case errors.Is(err, pace.ErrTooLarge):
		return nil, x.g.tooLarge()
	case errors.As(err, &full):
		return nil, errFull
	}
	return nil, status.Errorf(codes.InvalidArgument, "%v", err)
}

func (g *Gateway) tooLarge() error {
	return status.Errorf(codes.ResourceExhausted, "grpc: received message larger than max (%d)", g.opts.MaxMessage)
}

// decode turns the first JSON value of a body into a message. What follows it is ignored,
// as in etcd.
func (g *Gateway) decode(body []byte, m proto.Message) error {
	text, err := firstValue(body)
	if err == nil && text != nil {
		err = unmarshal.Unmarshal(text, m)
	}
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "%v", err)
	}
	if proto.Size(m) > g.opts.MaxMessage {
		return g.tooLarge()
	}
	return nil
}

// answer writes an answer.
func (x *exchange) answer(ctx context.Context, m proto.Message) {
	// Base64 makes three bytes four, and each number has a name.
	if err := x.claim.Wait(ctx, x.claim.Bytes()+2*int64(proto.Size(m))); err != nil {
		writeError(x.w, status.Convert(errFull))
		return
	}
	text, err := marshal(nil, m)
	if err != nil {
		writeError(x.w, status.New(codes.Internal, err.Error()))
		return
	}
	x.w.Header()["Content-Type"] = jsonType
	_ = pace.Write(x.conn, x.w, text) // who does not read has gone
}

// errFull is the refusal of what there is no memory for.
var errFull = status.Error(codes.ResourceExhausted, "etcdserver: too many requests")

// incoming is the context of a call: it ends with the request and has what the services
// look for in the metadata of a connection of gRPC.
func incoming(r *http.Request) context.Context {
	md := metadata.MD{}
	for name, values := range r.Header {
		if key, ok := strings.CutPrefix(name, "Grpc-Metadata-"); ok {
			md.Append(key, values...)
		} else if name == "Authorization" {
			md.Append(name, values...)
		}
	}
	ctx := peer.NewContext(r.Context(), &peer.Peer{Addr: remote(r.RemoteAddr)})
	return metadata.NewIncomingContext(ctx, md)
}

// remote is the address of a client.
type remote string

var _ net.Addr = remote("")

// Network implements net.Addr.
func (remote) Network() string { return "tcp" }

// String implements net.Addr.
func (r remote) String() string { return string(r) }

// drained reports the end of a body, which for a message that is not there means {}.
func drained(err error) bool { return errors.Is(err, io.EOF) }
