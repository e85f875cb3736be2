package front

import (
	"container/list"
	"crypto/rand"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/transport/v5/deadline"
)

const (
	recordHeader      = 13
	typeHandshake     = 22 // RFC 6347, clause 4.1
	typeConnectionID  = 25 // tls12_cid, RFC 9146, clause 4
	helloClient       = 1
	connectionIDAt    = 11
	datagramsOfOne    = 64
	socketBufferBytes = 4 << 20
)

// mux divides the datagrams of one socket among sessions and handshakes.
//
// A ClientHello makes a handshake, beside a session that its address may have already: a device that rebooted comes anew from
// the port that it had. Only what has proven its address by its cookie (RFC 6347, clause 4.2.1) takes that session's place.
// At most `unproven` handshakes are kept that have not; one more costs the oldest. So a flood from forged addresses takes no
// place of a handshake, and fails only those that need longer to return their cookie than it to send `unproven` datagrams.
type mux struct {
	socket   *net.UDPConn
	unproven int
	accepted chan *flow
	dropped  atomic.Uint64
	evicted  atomic.Uint64

	mutex     sync.Mutex
	beginning map[netip.AddrPort]*flow
	settled   map[netip.AddrPort]*flow
	named     map[[connectionIDBytes]byte]*flow
	waiting   *list.List // of those of beginning that have proven nothing, oldest first
}

type datagram struct {
	data []byte
	from net.Addr
}

// flow is a net.PacketConn with the datagrams of one handshake and the session that it becomes.
type flow struct {
	mux     *mux
	address netip.AddrPort
	peer    *net.UDPAddr
	name    [connectionIDBytes]byte
	place   *list.Element // in mux.waiting; nil once its address is proven
	inbox   chan datagram
	reads   *deadline.Deadline
	closed  chan struct{}
	close   func()
}

func newMux(address *net.UDPAddr, unproven int) (*mux, error) {
	socket, err := net.ListenUDP("udp", address)
	if err != nil {
		return nil, err
	}
	_ = socket.SetReadBuffer(socketBufferBytes) // as far as the system lets us
	made := &mux{
		socket: socket, unproven: unproven, accepted: make(chan *flow, datagramsOfOne), waiting: list.New(),
		beginning: map[netip.AddrPort]*flow{}, settled: map[netip.AddrPort]*flow{},
		named: map[[connectionIDBytes]byte]*flow{},
	}
	return made, nil
}

// run reads the socket until it is closed.
func (m *mux) run() error {
	defer close(m.accepted)
	buffer := make([]byte, maxDatagram)
	for {
		count, from, err := m.socket.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return err
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if found := m.route(buffer[:count], from); found != nil {
			found.take(append([]byte(nil), buffer[:count]...), from)
		}
	}
}

// route finds whose a datagram is, and makes a handshake for one that begins it; nil: nobody's.
func (m *mux) route(data []byte, from netip.AddrPort) *flow {
	if len(data) < recordHeader+1 {
		return nil
	}
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if data[0] == typeConnectionID {
		if len(data) < connectionIDAt+connectionIDBytes {
			return nil
		}
		return m.named[[connectionIDBytes]byte(data[connectionIDAt:])]
	}
	plain := data[3] == 0 && data[4] == 0 // epoch 0
	if begun := m.beginning[from]; begun != nil && (plain || begun.place == nil) {
		return begun
	}
	if !plain || data[0] != typeHandshake || data[recordHeader] != helloClient {
		return m.settled[from]
	}
	return m.begin(from)
}

// begin makes a handshake; the mutex is held.
func (m *mux) begin(from netip.AddrPort) *flow {
	if m.waiting.Len() >= m.unproven {
		m.evicted.Add(1)
		oldest := m.waiting.Front().Value.(*flow)
		m.forget(oldest)
		go oldest.close()
	}
	made := &flow{
		mux: m, address: from, peer: net.UDPAddrFromAddrPort(from), inbox: make(chan datagram, datagramsOfOne),
		reads: deadline.New(), closed: make(chan struct{}),
	}
	made.close = sync.OnceFunc(func() { close(made.closed) })
	_, _ = rand.Read(made.name[:]) // never fails (crypto/rand)
	select {
	case m.accepted <- made:
	default:
		m.dropped.Add(1)
		return nil
	}
	made.place = m.waiting.PushBack(made)
	m.beginning[from] = made
	return made
}

// forget takes a flow out of every table; the mutex is held.
func (m *mux) forget(gone *flow) {
	if gone.place != nil {
		m.waiting.Remove(gone.place)
		gone.place = nil
	}
	for _, table := range []map[netip.AddrPort]*flow{m.beginning, m.settled} {
		if table[gone.address] == gone {
			delete(table, gone.address)
		}
	}
	if m.named[gone.name] == gone {
		delete(m.named, gone.name)
	}
}

// proven notes that the peer has returned its cookie: from now on its Connection ID leads to it.
func (f *flow) proven() {
	f.mux.mutex.Lock()
	defer f.mux.mutex.Unlock()
	if f.place == nil {
		return
	}
	f.mux.waiting.Remove(f.place)
	f.place = nil
	f.mux.named[f.name] = f
}

// settle makes a finished handshake its address's session; the one before it ends.
func (f *flow) settle() {
	f.mux.mutex.Lock()
	defer f.mux.mutex.Unlock()
	if f.mux.beginning[f.address] == f {
		delete(f.mux.beginning, f.address)
	}
	if before := f.mux.settled[f.address]; before != nil && before != f {
		f.mux.forget(before)
		go before.close()
	}
	f.mux.settled[f.address] = f
}

func (f *flow) take(data []byte, from netip.AddrPort) {
	var sender net.Addr = f.peer
	if from != f.address {
		sender = net.UDPAddrFromAddrPort(from)
	}
	select {
	case f.inbox <- datagram{data, sender}:
	default:
		f.mux.dropped.Add(1)
	}
}

func (f *flow) ReadFrom(buffer []byte) (int, net.Addr, error) {
	select {
	case <-f.closed:
		return 0, nil, net.ErrClosed
	case <-f.reads.Done():
		return 0, nil, os.ErrDeadlineExceeded
	case got := <-f.inbox:
		return copy(buffer, got.data), got.from, nil
	}
}

func (f *flow) WriteTo(data []byte, to net.Addr) (int, error) {
	select {
	case <-f.closed:
		return 0, net.ErrClosed
	default:
		return f.mux.socket.WriteTo(data, to)
	}
}

func (f *flow) Close() error {
	f.mux.mutex.Lock()
	f.mux.forget(f)
	f.mux.mutex.Unlock()
	f.close()
	return nil
}

func (f *flow) LocalAddr() net.Addr { return f.mux.socket.LocalAddr() }

func (f *flow) SetReadDeadline(at time.Time) error {
	f.reads.Set(at)
	return nil
}

// Datagrams are sent or lost at once.
func (f *flow) SetWriteDeadline(time.Time) error { return nil }

func (f *flow) SetDeadline(at time.Time) error { return f.SetReadDeadline(at) }
