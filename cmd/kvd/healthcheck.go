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

// maxProbeBytes bounds how much of a probe's answer is shown.
const maxProbeBytes = 4 << 10

// healthcheckCommand probes a node on this machine, for supervisors that run a
// command instead of sending a request.
func healthcheckCommand(e environment) *cobra.Command {
	var (
		endpoint string
		ready    bool
		timeout  time.Duration
		files    probeFiles
	)
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Check whether a running node is alive or ready",
		Long: `Probe a running node. Exits 0 if the node answers that it is healthy, and 1 otherwise.

Without --endpoint, the node is the one that the environment describes (KVD_LISTEN_METRICS,
KVD_LISTEN_CLIENT, or KVD_PORT), or else the default. With https, that node must present the
certificate in KVD_TLS_CERT_FILE, which also authenticates the probe. Use --cacert, --cert, and
--key for other certificates.`,
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
				endpoint = "http://localhost" // for the header only: the client dials the socket
			}
			client.Timeout = timeout
			return probe(client, strings.TrimSuffix(endpoint, "/")+path)
		},
	}
	cmd.Flags().StringVar(&endpoint, "endpoint", "", "probe the node at this client `URL`")
	cmd.Flags().BoolVar(&ready, "ready", false, "check whether the node can serve requests, not only whether it is alive")
	cmd.Flags().DurationVar(&timeout, "timeout", 3*time.Second, "wait this long for the answer")
	cmd.Flags().StringVar(&files.ca, "cacert", "", "trust the authority in this PEM `FILE`")
	cmd.Flags().StringVar(&files.cert, "cert", "", "present the certificate in this PEM `FILE`")
	cmd.Flags().StringVar(&files.key, "key", "", "use the key in this PEM `FILE` for --cert")
	return cmd
}

// localEndpoint returns where a node with these environment variables answers
// probes; other variables are the node's business. The listener for metrics
// comes first because it does not ask for a certificate. The node's own
// certificate is noted in files.
func localEndpoint(environ []string, files *probeFiles) (string, error) {
	s, err := settings.ForClients(environ)
	if err != nil {
		return "", err
	}
	files.own, files.ownKey = s.TLSCertFile, s.TLSKeyFile
	return reachable(slices.Concat(s.ListenMetrics, s.ListenClient)[0]), nil
}

// reachable turns a URL that listens on all addresses into one to connect to.
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

// probe asks once. A supervisor repeats it, with its own idea of how often a
// failure counts.
func probe(client *http.Client, target string) error {
	resp, err := client.Get(target)
	if err != nil {
		return fmt.Errorf("health check: %w", err)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxProbeBytes))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return fmt.Errorf("health check: read the response of %s: %w", target, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("health check: %s returned %s: %s", target, resp.Status, strings.TrimSpace(string(body)))
	}
	return nil
}
