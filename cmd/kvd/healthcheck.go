package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/internal/settings"
)

// maxProbeBytes is how much of a probe's answer is shown.
const maxProbeBytes = 4 << 10

// healthcheckCommand asks a node on this machine how it is, for supervisors
// that run a command.
func healthcheckCommand(e environment) *cobra.Command {
	var (
		endpoint string
		ready    bool
		timeout  time.Duration
		files    probeFiles
	)
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Ask a running node whether it is alive, or ready",
		Long: `Exits 0 when the node answers that it is well, else 1. The node is the one that
the environment describes (KVD_LISTEN_METRICS, else KVD_LISTEN_CLIENT or
KVD_PORT), else the default. With https it must show the certificate of KVD_TLS_CERT_FILE, and is shown the same
one; or say with --cacert, --cert and --key what else.`,
		Args: noArguments,
		RunE: func(*cobra.Command, []string) error {
			if endpoint == "" {
				var err error
				if endpoint, err = localEndpoint(e.environ, &files); err != nil {
					return usageError{err}
				}
			}
			client, err := files.client(endpoint)
			if err != nil {
				return usageError{err}
			}
			path := "/livez"
			if ready {
				path = "/readyz"
			}
			if _, ok := settings.IsUnix(endpoint); ok {
				endpoint = "http://localhost"
			}
			client.Timeout = timeout
			return probe(client, strings.TrimSuffix(endpoint, "/")+path)
		},
	}
	cmd.Flags().StringVar(&endpoint, "endpoint", "", "client `URL` of the node")
	cmd.Flags().BoolVar(&ready, "ready", false, "ask whether it can serve requests, rather than whether it is alive")
	cmd.Flags().DurationVar(&timeout, "timeout", 3*time.Second, "how long to wait for the answer")
	cmd.Flags().StringVar(&files.ca, "cacert", "", "`file` with the authority of the node's certificate")
	cmd.Flags().StringVar(&files.cert, "cert", "", "`file` with the certificate to show")
	cmd.Flags().StringVar(&files.key, "key", "", "`file` with its key")
	return cmd
}

// localEndpoint is where a node with these environment variables answers
// probes. Only the variables about that matter here. The listener for metrics
// comes first, since it asks for no certificate. The node's own is noted.
func localEndpoint(environ []string, files *probeFiles) (string, error) {
	s, err := settings.ForClients(environ)
	if err != nil {
		return "", err
	}
	files.own, files.ownKey = s.TLSCertFile, s.TLSKeyFile
	return reachable(slices.Concat(s.ListenMetrics, s.ListenClient)[0]), nil
}

// reachable turns a listener on all addresses into one to connect to.
func reachable(listener string) string {
	u, err := url.Parse(listener)
	if err != nil || !settings.IsWildcard(listener) {
		return listener
	}
	host := "127.0.0.1"
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil && ip.Is6() {
		host = "::1"
	}
	return u.Scheme + "://" + net.JoinHostPort(host, u.Port())
}

func probe(client *http.Client, target string) error {
	resp, err := client.Get(target)
	if err != nil {
		return fmt.Errorf("health check: %w", err)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxProbeBytes))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return fmt.Errorf("health check: read the answer of %s: %w", target, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("health check: %s answers %s: %s", target, resp.Status, strings.TrimSpace(string(body)))
	}
	return nil
}
