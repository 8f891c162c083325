package cli

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kvd-io/kvd/client"
)

// SectionAnnotation is the annotation of a flag with the section of the help that
// it belongs to.
const SectionAnnotation = "kvd_help_section"

// defaultTimeout leaves time for two attempts of the client, so that a node that
// hangs does not fail a command.
const defaultTimeout = 10 * time.Second

// connection is what the flags and variables say about the cluster and the form of
// the output.
type connection struct {
	endpoints     []string
	ca, cert, key string // PEM files
	who           credentials
	timeout       time.Duration
	output        string
}

// flags adds the flags that all commands here have. Those of a command with
// subcommands are the subcommands' too.
func (c *connection) flags(cmd *cobra.Command, defaultEndpoint string) {
	f := cmd.PersistentFlags()
	f.StringSliceVar(&c.endpoints, "endpoints", []string{defaultEndpoint}, "client `URLS` of one or more nodes, also unix:///path (KVD_ENDPOINTS)")
	f.StringVar(&c.ca, "cacert", "", "trust the authority in this PEM `FILE` (KVD_CACERT)")
	f.StringVar(&c.cert, "cert", "", "present the certificate in this PEM `FILE` (KVD_CLIENT_CERT)")
	f.StringVar(&c.key, "key", "", "use the key in this PEM `FILE` for --cert (KVD_CLIENT_KEY)")
	c.who.flags(f)
	f.DurationVar(&c.timeout, "timeout", defaultTimeout, "give up after this long without an answer (KVD_TIMEOUT)")
	f.StringVarP(&c.output, "output", "o", "", "print as `FORMAT`: table, json, or value (KVD_OUTPUT)")
	_ = cmd.RegisterFlagCompletionFunc("output", completeFormat) // fails only for unknown flags
	f.VisitAll(func(flag *pflag.Flag) {
		flag.Annotations = map[string][]string{SectionAnnotation: {"Connection and output"}}
	})
}

// variables of the connection, by flag.
var variables = []struct{ flag, variable string }{
	{"endpoints", "KVD_ENDPOINTS"},
	{"cacert", "KVD_CACERT"},
	{"cert", "KVD_CLIENT_CERT"},
	{"key", "KVD_CLIENT_KEY"},
	{"token", "KVD_TOKEN"},
	{"token-file", "KVD_TOKEN_FILE"},
	{"user", "KVD_USER"},
	{"timeout", "KVD_TIMEOUT"},
	{"output", "KVD_OUTPUT"},
}

// FromEnvironment takes what no flag says from the variables, of those flags that the
// command has, and whose meaning here is not another one. An empty variable counts as not set.
func FromEnvironment(flags *pflag.FlagSet, environ []string, others ...string) error {
	// One of these flags overrides the variables of all: they contradict each other.
	identified := slices.ContainsFunc(credentialFlags, flags.Changed)
	for _, v := range variables {
		text := variable(environ, v.variable)
		if text == "" || flags.Lookup(v.flag) == nil || flags.Changed(v.flag) || slices.Contains(others, v.flag) || identified && slices.Contains(credentialFlags, v.flag) {
			continue
		}
		if err := flags.Set(v.flag, text); err != nil {
			return usagef("%s: %w", v.variable, err)
		}
	}
	return nil
}

// variable returns the value of a variable, "" if it is not set.
func variable(environ []string, name string) string {
	value := ""
	for _, pair := range environ {
		if n, v, ok := strings.Cut(pair, "="); ok && n == name {
			value = v // the last one counts, as for os/exec
		}
	}
	return value
}

// open returns a client for the connection. It does not connect yet.
func (c *connection) open(e *Environment) (*client.Client, error) {
	conf, err := tlsConfig(c.ca, c.cert, c.key)
	if err != nil {
		return nil, UsageError{err}
	}
	cfg := client.Config{TLS: conf}
	if err := c.identify(e, &cfg); err != nil {
		return nil, err
	}
	return c.connect(cfg)
}

// connect returns a client for the endpoints.
func (c *connection) connect(cfg client.Config) (*client.Client, error) {
	if c.timeout <= 0 {
		return nil, usagef("--timeout is %v, but must be above 0", c.timeout)
	}
	for _, e := range c.endpoints {
		if !strings.Contains(e, "://") {
			return nil, usagef("--endpoints: %q has no scheme; write http://%s, or https://%s if the node has TLS", e, e, e)
		}
	}
	cfg.Endpoints = c.endpoints
	cl, err := client.New(cfg)
	if err != nil {
		return nil, usagef("%s", strings.TrimPrefix(err.Error(), "kvd client: "))
	}
	return cl, nil
}

// identify fills in who the user is: what was said about it, or else the last login.
func (c *connection) identify(e *Environment, cfg *client.Config) (err error) {
	if err := c.who.check(); err != nil {
		return err
	}
	cfg.Token, cfg.TokenFile = c.who.token, c.who.tokenFile
	if c.who.user != "" {
		cfg.User, cfg.Password, err = c.who.password(e)
		return err
	}
	if c.who.none() && c.cert == "" {
		logins, err := OpenLogins(e.Environ)
		if err != nil {
			return err
		}
		if saved, ok := logins.Find(c.endpoints); ok {
			cfg.Token = saved.Token
		}
	}
	return nil
}

// tlsConfig returns nil, which means the system's authorities, if no file is given.
func tlsConfig(ca, cert, key string) (*tls.Config, error) {
	if ca == "" && cert == "" && key == "" {
		return nil, nil
	}
	if (cert == "") != (key == "") {
		return nil, errors.New("--cert and --key must be given together")
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		text, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("--cacert: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("--cacert: %s has no PEM certificate", ca)
		}
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("--cert: %w", err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return conf, nil
}
