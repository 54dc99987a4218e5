% Read the cursor in GNU Octave: apt-get install octave-zeromq
%
%     octave-cli reader.m [tcp://127.0.0.1:5556]
%
% Prints `seq vel_x vel_y` (m/s) for each frame to act on, and `stop: why` otherwise. Call your own
% function in their place. The rules are in docs/READERS.md.
pkg load zeromq
max_age_s = 0.1; schema = 1; topic = 'cursor.json:';
drift = 2e-4;  % s/s; by how much two hosts' clocks may drift apart
most = 65536;  % bytes of a message
address = [argv(); {'tcp://127.0.0.1:5556'}]{1};

socket = zmq_socket(ZMQ_SUB);
zmq_setsockopt(socket, ZMQ_SUBSCRIBE, topic);
zmq_connect(socket, address);
shortest = Inf; started = NaN; began = tic; before = 0;
while true
  if ! zmq_poll(socket, 1e3 * max_age_s)
    puts("stop: silence\n"); fflush(stdout);
    continue
  end
  message = zmq_recv(socket, most);
  while zmq_poll(socket, 0)  % the package has no ZMQ_CONFLATE: only the newest frame counts
    message = zmq_recv(socket, most);
  end
  try
    frame = jsondecode(char(message(numel(topic) + 1 : end)));
    now_s = toc(began); way = now_s - frame.published;
    if ! isequal(frame.started, started)  % another daemon
      started = frame.started; shortest = Inf;
    end
    shortest = min(way, shortest + drift * (now_s - before)); before = now_s;
    velocity = frame.velocity;
    if ! (isnumeric(velocity) && numel(velocity) == 2 && all(isfinite([velocity(:); way])))
      error('numbers expected');
    elseif frame.schema != schema
      puts("stop: another schema\n");
    elseif way - shortest > max_age_s
      puts("stop: an old frame\n");
    elseif ! isequal(frame.valid, true)
      printf("stop: %s\n", frame.state);
    else
      printf("%d %.17g %.17g\n", frame.seq, velocity(1), velocity(2));
    end
  catch problem
    printf("stop: unreadable (%s)\n", problem.message);
  end
  fflush(stdout);
end
